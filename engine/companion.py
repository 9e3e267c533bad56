"""The companion inside Triton's Python backend: it commits a base model's lora map.

Anything written below a base model's folder makes Triton start its engine anew. So the map lies
in this tiny model's folder: loading it is the commit, and its inference answers how each adapter
fares. There is no `finalize()` on purpose: Triton calls the old instance's after the new one's
`initialize()`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from adapter_sync.lora_map import (
    COMPANION_SUFFIX,
    STATUS_QUERY,
    parse_lora_map,
    read_lora_map_text,
)
from engine.handover import HandoverError, ask, socket_path


class TritonPythonModel:
    """What Triton's stub calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Hand the map to the base model.

        A base model that is not there yet reads the map itself when it starts. A map that can't
        be read fails the load, and the earlier one goes on serving.
        """
        model_folder = Path(args["model_repository"]).resolve()
        base_model = model_folder.name.removesuffix(COMPANION_SUFFIX)
        self._socket = socket_path(model_folder.parent, base_model)
        text = read_lora_map_text(model_folder / args["model_version"])
        self._lora_map = parse_lora_map(text)
        self._base_model = base_model
        revision, began = self._lora_map.revision, time.monotonic()
        try:
            ask(self._socket, {"lora_map": text})
        except HandoverError as error:
            pb_utils.Logger.log_info(f"lora_map.deferred revision={revision}: {error}")
        else:
            took_s = time.monotonic() - began
            pb_utils.Logger.log_info(f"lora_map.handed_over {revision=} {took_s=:.3f}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with the base model's status and with what it may be asked for.

        The query "status" leaves the second out, which is long where there are many adapters.
        """
        return [self._answer(_query(request)) for request in requests]

    def _answer(self, query: str) -> Any:
        try:
            status: Mapping[str, Any] | None = ask(self._socket, {})
        except HandoverError:
            status = None
        document: dict[str, Any] = {"revision": self._lora_map.revision, "base_model": status}
        if query != STATUS_QUERY:
            document["adapters"] = self._adapters(status)
        tensor = pb_utils.Tensor(
            "status", np.array([json.dumps(document).encode()], dtype=np.object_)
        )
        return pb_utils.InferenceResponse(output_tensors=[tensor])

    def _adapters(self, status: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        """Each adapter of the map: its id, which a direct client asks by, its name and state."""
        told = {} if status is None else status["adapters"]
        settled = status is not None and status["settled_revision"] == self._lora_map.revision
        # The base model leaves out those that are simply on the disk.
        untold = "on_disk" if settled else None
        return [
            {
                "id": entry.lora_name.partition("@")[0],
                "name": f"{self._base_model}:{entry.name}",
                "lora_name": entry.lora_name,
                "rank": entry.rank,
                "state": told[entry.lora_name]["state"] if entry.lora_name in told else untold,
            }
            for entry in self._lora_map.adapters
        ]


def _query(request: Any) -> str:
    tensor = pb_utils.get_input_tensor_by_name(request, "query")
    return "" if tensor is None else tensor.as_numpy().item().decode(errors="replace")
