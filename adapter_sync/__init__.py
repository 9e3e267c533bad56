"""Adapters: their record, registry, blobs and validation, and their way into Triton.

Never imports the gateway, the engine or vllm.
"""

__version__ = "0.1.0"
"""The release, as in pyproject.toml."""
