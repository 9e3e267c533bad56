"""Adapters: their record, registry, blobs and validation, and their way into Triton.

Never imports the gateway, the engine or vllm.
"""
