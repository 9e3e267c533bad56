"""An adapter's files on the operator's disk, and their way into the staging folder."""

import hashlib
from pathlib import Path

from adapter_sync.errors import AdapterTooLargeError, InvalidAdapterError
from adapter_sync.sources.files import CONFIG_FILE, WEIGHTS_FILE
from adapter_sync.tiers import Tier

_CHUNK_BYTES = 1 << 20


def adapter_files(given: Path, config: Path | None) -> tuple[Path, Path | None]:
    """The weights and the config of a file, or of a PEFT folder, which has to hold both.

    A config given beside them comes first; one that merely lies beside a file is not looked at.
    Raises InvalidAdapterError.
    """
    if not given.is_dir():
        return given, config
    weights, config = given / WEIGHTS_FILE, config or given / CONFIG_FILE
    if not weights.is_file():
        raise InvalidAdapterError(f"The folder {given} has no {WEIGHTS_FILE}.")
    if not config.is_file():
        raise InvalidAdapterError(f"There is no {config}.", param="config")
    return weights, config


def stage(weights: Path, staged: Path, tier: Tier) -> str:
    """Copy the weights into the staging file; their SHA-256.

    Raises AdapterTooLargeError before it copies anything, and OSError.
    """
    if weights.stat().st_size > tier.max_adapter_bytes:
        raise AdapterTooLargeError(limit_bytes=tier.max_adapter_bytes, tier=tier.name)
    digest = hashlib.sha256()
    with weights.open("rb") as source, staged.open("wb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            target.write(chunk)
    return digest.hexdigest()
