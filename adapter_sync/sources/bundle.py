"""An adapter packed as a zip: its weights are unpacked into a staging file, its config is read.

No name from the zip ever becomes the name of a file, and nothing else in it is unpacked.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from adapter_sync.errors import AdapterTooLargeError, InvalidAdapterError
from adapter_sync.sources.files import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles
from adapter_sync.sources.write_back import WriteBack
from adapter_sync.sources.zip_file import Entry, is_zip, read_entries, unpack
from adapter_sync.tiers import Tier
from adapter_sync.validation.config import MAX_CONFIG_BYTES
from adapter_sync.validation.strict_json import parse_object
from adapter_sync.validation.words import listed, quoted

_PERHAPS_CONFIG = "config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_ARCHIVES = (
    *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".lzma"),
    *(".zst", ".lz4", ".7z", ".rar", ".jar", ".whl"),
)
_SIGNATURE_BYTES = 4


@contextmanager
def unbundled(
    received: AdapterFiles,
    *,
    tier: Tier,
    staging_file: Callable[[], AbstractContextManager[Path]],
) -> Iterator[AdapterFiles]:
    """The received files or, if what came as weights is a zip, the files in that.

    Args:
        received: one file, of which only its first bytes say what it is, and perhaps a config.
        tier: the owner's, for the size of what is unpacked.
        staging_file: gives a file to unpack into, which is gone at the end.

    Raises:
        InvalidAdapterError: the zip does not hold just one adapter, or may not be unpacked.
        AdapterTooLargeError: the weights in it are over the tier's limit.

    """
    if not _is_bundle(received.weights):
        yield received
        return
    with staging_file() as weights:
        with received.weights.open("rb") as bundle:
            files = _unpacked(bundle, weights, tier=tier, received=received)
        yield files


def _is_bundle(file: Path) -> bool:
    """Whether the file's first bytes are a zip's: its name is the sender's, and not trusted."""
    with file.open("rb") as opened:
        return is_zip(opened.read(_SIGNATURE_BYTES))


def _unpacked(file: BinaryIO, weights: Path, *, tier: Tier, received: AdapterFiles) -> AdapterFiles:
    config = received.config
    entries = [entry for entry in read_entries(file) if not _is_clutter(entry.path)]
    _check_no_archives(entries)
    source = _weights_entry(entries)
    bundled = _config(file, entries, source.path.parent)
    if config is not None and bundled is not None:
        raise InvalidAdapterError(
            f"The zip has the adapter's config in it, {quoted(str(bundled[0]))}, and another one "
            "came beside it. Leave out the one beside it, 'config'.",
            param="config",
        )
    if config is None and bundled is None:
        _check_no_stray_config(entries, source.path.parent)
    return replace(
        received,
        weights=weights,
        weights_sha256=_unpack_weights(file, source, weights, tier),
        config=config if bundled is None else bundled[1],
    )


def _is_clutter(path: PurePosixPath) -> bool:
    """Whether macOS put it there."""
    return path.parts[0] == "__MACOSX" or path.name.startswith("._") or path.name == ".DS_Store"


def _check_no_archives(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.path.suffix.lower() in _ARCHIVES:
            raise InvalidAdapterError(
                f"{entry.words} is itself an archive. Pack the adapter's files directly."
            )


def _weights_entry(entries: Sequence[Entry]) -> Entry:
    found = [entry for entry in entries if entry.path.name == WEIGHTS_FILE]
    if not found:
        raise _no_weights(entries)
    if len(found) > 1:
        raise InvalidAdapterError(
            f"The zip holds {len(found)} adapters: {listed(str(entry.path) for entry in found)}. "
            "Upload each in a zip of its own."
        )
    return found[0]


def _no_weights(entries: Sequence[Entry]) -> InvalidAdapterError:
    pickles = [str(entry.path) for entry in entries if entry.path.suffix.lower() in _PICKLES]
    if pickles:
        return InvalidAdapterError(
            f"The zip has no {WEIGHTS_FILE}, but {listed(pickles)}: files of that kind can run "
            "code, so they are not read. Convert the adapter to safetensors."
        )
    names = listed(str(entry.path) for entry in entries) or "nothing of use"
    return InvalidAdapterError(f"The zip has no {WEIGHTS_FILE}. It holds {names}.")


def _config(
    file: BinaryIO, entries: Sequence[Entry], folder: PurePosixPath
) -> tuple[PurePosixPath, bytes] | None:
    """The config that lies beside the weights, and its path."""
    beside = {entry.path.name: entry for entry in entries if entry.path.parent == folder}
    if entry := beside.get(CONFIG_FILE):
        return entry.path, _config_bytes(file, entry)
    if entry := beside.get(_PERHAPS_CONFIG):
        content = _config_bytes(file, entry)
        # Transformers gives a base model's config the same name.
        if "peft_type" in parse_object(content, what=entry.words, param="file"):
            return entry.path, content
    return None


def _config_bytes(file: BinaryIO, entry: Entry) -> bytes:
    if entry.size_bytes > MAX_CONFIG_BYTES:
        raise InvalidAdapterError(
            f"{entry.words} has {entry.size_bytes} bytes, at most {MAX_CONFIG_BYTES} are allowed "
            "for a config."
        )
    return b"".join(unpack(file, entry))


def _check_no_stray_config(entries: Sequence[Entry], folder: PurePosixPath) -> None:
    """Without its config an adapter would get a guessed lora_alpha, and answer wrongly."""
    for entry in entries:
        if entry.path.name == CONFIG_FILE:
            raise InvalidAdapterError(
                f"{entry.words} is not in the folder of {WEIGHTS_FILE}, {quoted(str(folder))}. Put "
                "the two side by side."
            )


def _unpack_weights(file: BinaryIO, entry: Entry, weights: Path, tier: Tier) -> str:
    """The weights' SHA-256. `unpack` holds them to the size that was checked here."""
    if entry.size_bytes > tier.max_adapter_bytes:
        raise AdapterTooLargeError(limit_bytes=tier.max_adapter_bytes, tier=tier.name)
    digest = sha256()
    with weights.open("wb") as opened:
        target = WriteBack(opened)
        for piece in unpack(file, entry):
            digest.update(piece)
            target.write(piece)
    return digest.hexdigest()
