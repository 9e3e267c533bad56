"""The companion inside Triton's Python backend: it commits a base model's lora map.

Anything written below a base model's folder makes Triton start its engine anew. So the map and
the adapter files lie in this tiny model's folder: loading it is the commit, and its inference
answers how each adapter fares. There is no `finalize()` on purpose: Triton calls the old
instance's after the new one's `initialize()`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from adapter_sync.lora_map import COMPANION_SUFFIX, parse_lora_map, read_lora_map_text
from engine.handover import HandoverError, ask, socket_path


class TritonPythonModel:
    """What Triton's stub calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Hand the map to the base model.

        A base model that is not there yet reads the map itself when it starts. A map that can't
        be read fails the load, and the earlier one goes on serving.
        """
        model_folder = Path(args["model_repository"]).resolve()
        folder = model_folder / args["model_version"]
        base_model = model_folder.name.removesuffix(COMPANION_SUFFIX)
        self._socket = socket_path(model_folder.parent, base_model)
        text = read_lora_map_text(folder)
        self._revision = parse_lora_map(text).revision
        try:
            ask(self._socket, {"lora_map": text, "folder": str(folder)})
        except HandoverError as error:
            pb_utils.Logger.log_info(f"lora_map.deferred revision={self._revision}: {error}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with the base model's status; the input is ignored."""
        return [self._status() for _ in requests]

    def _status(self) -> Any:
        try:
            status: Mapping[str, Any] | None = ask(self._socket, {})
        except HandoverError:
            status = None
        document = json.dumps({"revision": self._revision, "base_model": status})
        tensor = pb_utils.Tensor("status", np.array([document.encode()], dtype=np.object_))
        return pb_utils.InferenceResponse(output_tensors=[tensor])
