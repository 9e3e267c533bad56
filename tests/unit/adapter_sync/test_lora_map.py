"""The lora map's file."""

import json
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_sync.lora_map import (
    EMPTY_LORA_MAP,
    LORA_MAP_FILE,
    LoraMap,
    LoraMapEntry,
    LoraMapError,
    companion_name,
    dump_lora_map,
    parse_lora_map,
    read_lora_map,
)

names = st.from_regex(r"adp_[a-z0-9]{1,6}@[0-9a-f]{4}", fullmatch=True)
maps = st.builds(
    lambda revision, ranks: LoraMap(
        revision=revision,
        adapters=tuple(
            LoraMapEntry(lora_name=name, folder=name, rank=rank, name=name)
            for name, rank in sorted(ranks.items())
        ),
    ),
    st.integers(min_value=0),
    st.dictionaries(names, st.integers(min_value=1, max_value=512), max_size=8),
)
ENTRY = {"lora_name": "adp_1@00", "folder": "adp_1@00", "rank": 8}


@given(maps)
def test_what_is_written_is_read(lora_map: LoraMap) -> None:
    assert parse_lora_map(dump_lora_map(lora_map)) == lora_map


@given(maps, st.randoms())
def test_equal_maps_are_written_alike(lora_map: LoraMap, random: Random) -> None:
    shuffled = list(lora_map.adapters)
    random.shuffle(shuffled)
    other = LoraMap(revision=lora_map.revision, adapters=tuple(shuffled))
    assert dump_lora_map(other) == dump_lora_map(lora_map)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_any_other_json_is_refused(document: object) -> None:
    with pytest.raises(LoraMapError):
        parse_lora_map(json.dumps(document))


@pytest.mark.parametrize(
    "document",
    [
        {"revision": 1},
        {"adapters": []},
        {"revision": -1, "adapters": []},
        {"revision": True, "adapters": []},
        {"revision": "1", "adapters": []},
        {"revision": 1, "adapters": {}, "more": 1} | {"adapters": None},
        {"revision": 1, "adapters": ["adp_1@00"]},
        {"revision": 1, "adapters": [ENTRY, ENTRY]},
        {"revision": 1, "adapters": [ENTRY | {"rank": "8"}]},
        {"revision": 1, "adapters": [ENTRY | {"rank": True}]},
        {"revision": 1, "adapters": [ENTRY | {"lora_name": None}]},
        {"revision": 1, "adapters": [{"lora_name": "a", "rank": 8}]},
    ],
)
def test_a_map_with_a_fault_is_refused(document: object) -> None:
    with pytest.raises(LoraMapError, match="not a lora map"):
        parse_lora_map(json.dumps(document))


@pytest.mark.parametrize(
    "folder", ["", ".", "..", "/", "/etc", "../other", "a/b", "a/", "./a", "a\0b", "a/../.."]
)
def test_a_folder_that_is_not_a_plain_name_is_refused(folder: str) -> None:
    document = {"revision": 1, "adapters": [ENTRY | {"folder": folder}]}
    with pytest.raises(LoraMapError, match="leads out"):
        parse_lora_map(json.dumps(document))


@pytest.mark.parametrize("content", [b"", b"{", b'{"revision": 1', b"\xff\xfe\x00", b"\0" * 40])
def test_a_broken_file_is_a_lora_map_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LORA_MAP_FILE).write_bytes(content)
    with pytest.raises(LoraMapError):
        read_lora_map(tmp_path)


def test_no_file_is_the_empty_map(tmp_path: Path) -> None:
    assert read_lora_map(tmp_path) == EMPTY_LORA_MAP
    assert read_lora_map(tmp_path / "nowhere") == EMPTY_LORA_MAP


def test_a_map_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / LORA_MAP_FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        read_lora_map(tmp_path)


def test_the_companions_name_follows_from_the_base_models() -> None:
    assert companion_name("smollm2-135m-instruct") == "smollm2-135m-instruct-adapters"
