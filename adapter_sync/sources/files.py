"""What every source brings of an adapter. Imports of the project only the record."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapter_sync.record import UPLOADED

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
"""The names that PEFT's save_pretrained gives an adapter's two files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFiles:
    """What came of an adapter, and where from.

    `weights` is the adapter_model.safetensors, on the blobs' file system; it is moved away when
    the adapter is accepted. `weights_sha256` is its SHA-256 (hex). `config` is the
    adapter_config.json, if there was one; `lora_alpha` the sender's word on it otherwise.
    """

    weights: Path
    weights_sha256: str
    config: bytes | None = None
    lora_alpha: float | None = None
    source: Mapping[str, object] = field(default_factory=lambda: UPLOADED)
