"""Beside this file lie a base model's adapters. It serves nothing: the base model does."""

from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """What Triton wants in each folder of its repository."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Refuse: there is nothing to be asked."""
        error = pb_utils.TritonError("this model only holds adapters' files: ask its base model")
        return [pb_utils.InferenceResponse(output_tensors=[], error=error) for _ in requests]
