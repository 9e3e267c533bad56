"""The base model: see the engine package."""

from engine.base_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
