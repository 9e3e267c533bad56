"""A base model's companion: see the engine package."""

from engine.companion import TritonPythonModel

__all__ = ["TritonPythonModel"]
