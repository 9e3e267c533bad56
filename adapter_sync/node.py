"""The own node: one Triton with its adapter_sync, as it announces itself in the registry."""

import re
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from adapter_sync import __version__
from adapter_sync.engine_status import EngineStatus
from adapter_sync.record import BaseModel, Node, NodeBaseModel

NODE_ID_FILE = "node.id"
_ID = re.compile(r"nod_[0-9a-f]{20}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ThisNode:
    """What does not change while adapter_sync runs."""

    id: str
    host: str
    triton: str
    started_at: datetime

    @classmethod
    def load(cls, data_folder: Path, triton: str) -> Self:
        """The node of a data folder, whose id stays the same from start to start.

        Only the one adapter_sync that has the folder may call this.
        """
        return cls(
            id=_load_id(data_folder / NODE_ID_FILE),
            host=socket.gethostname(),
            triton=triton,
            started_at=datetime.now(UTC),
        )

    def announcement(
        self, base_models: Sequence[BaseModel], engines: Mapping[str, EngineStatus]
    ) -> Node:
        """The node as it is now: its base models, and what the engines of those that run told."""
        return Node(
            id=self.id,
            host=self.host,
            triton=self.triton,
            version=__version__,
            base_models=tuple(_base_model(base, engines.get(base.name)) for base in base_models),
            started_at=self.started_at,
            heartbeat_at=datetime.now(UTC),
        )


def _base_model(base: BaseModel, engine: EngineStatus | None) -> NodeBaseModel:
    running = engine if engine is not None and engine.revision is not None else None
    return NodeBaseModel(
        name=base.name,
        max_model_len=base.max_model_len,
        max_lora_rank=base.max_lora_rank if base.takes_adapters else None,
        max_loras=None if running is None else running.max_loras,
        lora_map_revision=None if running is None else running.revision,
    )


def _load_id(path: Path) -> str:
    known = path.read_text(encoding="ascii", errors="replace") if path.exists() else ""
    if _ID.fullmatch(known) is not None:
        return known
    made = f"nod_{secrets.token_hex(10)}"
    draft = path.with_name(f".{path.name}")
    draft.write_text(made, encoding="ascii")
    draft.replace(path)
    return made
