"""The lora map: what a base model's engine is to serve, one JSON file in its companion's folder.

The adapters' files lie in a Triton model of their own beside it, because Triton looks at every file
of a model when it loads it: ten thousand adapters would slow every commit down.

adapter_sync writes it, the engine reads it. Imports nothing of the project and nothing outside
the standard library: Triton's Python backend imports it too.

    {"revision": 42, "adapters": [
        {"lora_name": "adp_…@0123456789abcdef", "name": "finance",
         "folder": "adp_…@0123456789abcdef", "rank": 8}]}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

LORA_MAP_FILE = "lora_map.json"
COMPANION_SUFFIX = "-adapters"
ADAPTER_FILES_SUFFIX = "-adapter-files"
WRITTEN_SUFFIXES = (COMPANION_SUFFIX, ADAPTER_FILES_SUFFIX)
"""Of the Triton models that adapter_sync writes: no base model's name ends so."""
VERSION_FOLDER = "1"
"""The one version that each of these Triton models has."""
STATUS_QUERY = "status"
"""What a companion is asked by adapter_sync, which knows the adapters itself."""


class LoraMapError(ValueError):
    """The file is not a lora map; the message says where."""


class LoraMapEntry(NamedTuple):
    """One adapter: its identity in the engine and its folder among the adapters' files.

    A tuple, because ten thousand of them are made in a third of a dataclass's time.
    """

    lora_name: str
    folder: str
    rank: int
    name: str = ""
    """The adapter's own name; empty in maps that were written before it was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraMap:
    """A revision (it only grows) and the adapters served, sorted by lora_name."""

    revision: int
    adapters: tuple[LoraMapEntry, ...]


EMPTY_LORA_MAP = LoraMap(revision=0, adapters=())


def companion_name(base_model: str) -> str:
    """The Triton model that holds a base model's lora map."""
    return f"{base_model}{COMPANION_SUFFIX}"


def adapter_files_name(base_model: str) -> str:
    """The Triton model that holds a base model's adapters' files, and does nothing else."""
    return f"{base_model}{ADAPTER_FILES_SUFFIX}"


def adapter_files_folder(repository: Path, base_model: str) -> Path:
    """Where the folders that a base model's lora map names lie."""
    return repository / adapter_files_name(base_model) / VERSION_FOLDER


def dump_lora_map(lora_map: LoraMap) -> str:
    """The file's text, a line for each field, the same for equal maps."""
    adapters = [
        {
            "lora_name": entry.lora_name,
            "name": entry.name,
            "folder": entry.folder,
            "rank": entry.rank,
        }
        for entry in _sorted(lora_map.adapters)
    ]
    document = {"revision": lora_map.revision, "adapters": adapters}
    # Not by json's own indent, which takes its slow way: there may be ten thousand.
    return json.dumps(document, separators=(",\n", ": ")) + "\n"


def parse_lora_map(text: str) -> LoraMap:
    """Read a map. Raises LoraMapError for anything that dump_lora_map would not write."""
    try:
        document = json.loads(text)
        revision, adapters = document["revision"], document["adapters"]
        entries = [_parse_entry(adapter) for adapter in adapters]
    except (ValueError, KeyError, TypeError) as error:
        raise LoraMapError(f"not a lora map: {error!r}") from error
    # A bool is an int to Python.
    if type(revision) is not int or revision < 0:
        raise LoraMapError(f"not a lora map: revision is {revision!r}")
    names = [entry.lora_name for entry in entries]
    if len(set(names)) != len(names):
        raise LoraMapError("not a lora map: a lora_name is there twice")
    return LoraMap(revision=revision, adapters=_sorted(entries))


def read_lora_map(folder: Path) -> LoraMap:
    """The map in a companion's folder, the empty one when there is none yet.

    Raises LoraMapError when the file is not a map, OSError when it can't be read.
    """
    return parse_lora_map(read_lora_map_text(folder))


def read_lora_map_text(folder: Path) -> str:
    """The text of the map in a companion's folder, the empty one's when there is none yet.

    Raises LoraMapError when the file is no text, OSError when it can't be read.
    """
    try:
        return (folder / LORA_MAP_FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return dump_lora_map(EMPTY_LORA_MAP)
    except UnicodeDecodeError as error:
        raise LoraMapError(f"not a lora map: {error}") from error


def _parse_entry(adapter: Mapping[str, object]) -> LoraMapEntry:
    lora_name, folder, rank = adapter["lora_name"], adapter["folder"], adapter["rank"]
    name = adapter.get("name", "")
    if not isinstance(lora_name, str) or not isinstance(folder, str) or type(rank) is not int:
        raise LoraMapError(f"not a lora map: an entry is {adapter!r}")
    if not isinstance(name, str):
        raise LoraMapError(f"not a lora map: an entry is {adapter!r}")
    if folder in ("", ".", "..") or "/" in folder or "\0" in folder:
        raise LoraMapError(
            f"not a lora map: the folder {folder!r} leads out of the adapters' files"
        )
    return LoraMapEntry(lora_name=lora_name, folder=folder, rank=rank, name=name)


def _sorted(entries: Sequence[LoraMapEntry]) -> tuple[LoraMapEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.lora_name))
