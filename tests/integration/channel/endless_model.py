"""The base model with an engine that costs nothing: Triton, its stub and the channels are real.

What it answers is chosen by the request's body: `tokens` words, one every `period_s`, `size` bytes
each; None for ever.
"""

import asyncio
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine import base_model
from engine.channels import Responder


class Engine:
    """In the place of engine.base_engine.BaseEngine."""

    def __init__(self, notes: Path) -> None:
        self._notes = notes
        self._in_flight = 0
        self._count(0)

    async def answer(self, raw: bytes, responder: Responder) -> None:
        body = json.loads(raw)["body"]
        self._count(1)
        try:
            endless = itertools.count(1)
            numbers = endless if body["tokens"] is None else range(1, body["tokens"] + 1)
            for number in numbers:
                await asyncio.sleep(body["period_s"])
                word = b"%d " % number
                responder.write(
                    word.ljust(body["size"], b"."),
                    http_status=200 if number == 1 else None,
                )
        finally:
            self._count(-1)

    async def answer_native(
        self, tensors: Mapping[str, Any], parameters: str, responder: Any
    ) -> None:
        raise NotImplementedError

    def health(self) -> Mapping[str, Any]:
        return {"alive": True, "reason": None, "proof_age_s": 0.0}

    async def stop(self) -> None:
        pass

    def _count(self, change: int) -> None:
        self._in_flight += change
        # By rename: it is read at any moment.
        new = self._notes.with_suffix(".new")
        new.write_text(str(self._in_flight))
        new.rename(self._notes)


class TritonPythonModel(base_model.TritonPythonModel):
    """What Triton's stub calls."""

    async def start_engine(self, model_folder: Path, version_folder: Path) -> Any:
        """Beside the repository it notes how many requests are in flight."""
        del version_folder
        return Engine(model_folder.parent.parent / "in_flight")
