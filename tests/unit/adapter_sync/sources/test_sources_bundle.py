"""A bundle gives the one adapter in it, or is refused with words that name the entry at fault."""

import dataclasses
import hashlib
import io
import json
import stat
import struct
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from adapter_sync.errors import AdapterTooLargeError, InvalidAdapterError
from adapter_sync.sources.bundle import unbundled
from adapter_sync.sources.files import AdapterFiles
from adapter_sync.sources.zip_file import (
    MAX_DIRECTORY_BYTES,
    MAX_ENTRIES,
    MAX_NAME_LENGTH,
    read_entries,
)
from adapter_sync.sources.zip_file import unpack as unpack_entry
from adapter_sync.staging import staged_file
from adapter_sync.tiers import Tier, load_tiers
from adapter_sync.validation.config import MAX_CONFIG_BYTES
from tests.zips import (
    CENTRAL_MODE,
    CENTRAL_OFFSET,
    END_BYTES,
    LOCAL_BYTES,
    central_start,
    declaring,
    deflated,
    with_bytes,
    with_payload,
    zipped,
)

TIER = replace(load_tiers().named("shared"), max_adapter_bytes=3_000_000)
WEIGHTS = "adapter_model.safetensors"
CONTENT = bytes(range(256)) * 40
CONFIG = json.dumps({"peft_type": "LORA", "r": 4})
GOOD: dict[str, bytes | str] = {WEIGHTS: CONTENT, "adapter_config.json": CONFIG}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    weights: bytes
    config: bytes | None


Unpack = Callable[..., Unpacked]


@pytest.fixture
def unpack(tmp_path: Path) -> Unpack:
    """Takes a file in as an upload would, and sees that no other file is left."""

    def unpack(archive: bytes, config: bytes | None = None, tier: Tier = TIER) -> Unpacked:
        uploads = tmp_path / "uploads"
        received = tmp_path / "received"
        received.write_bytes(archive)
        digest = hashlib.sha256(archive).hexdigest()
        files = AdapterFiles(weights=received, weights_sha256=digest, config=config)
        try:
            with unbundled(files, tier=tier, staging_file=partial(staged_file, uploads)) as found:
                weights = found.weights.read_bytes()
                assert found.weights_sha256 == hashlib.sha256(weights).hexdigest()
                return Unpacked(weights=weights, config=found.config)
        finally:
            assert not uploads.exists() or list(uploads.iterdir()) == []
            assert received.read_bytes() == archive

    return unpack


@pytest.fixture
def refusal(unpack: Unpack) -> Callable[..., str]:
    def refusal(archive: bytes, config: bytes | None = None, *, param: str = "file") -> str:
        with pytest.raises(InvalidAdapterError) as caught:
            unpack(archive, config)
        assert caught.value.param == param
        return str(caught.value)

    return refusal


def _streamed() -> bytes:
    """As a packer writes that can't go back: sizes and checksums come after the content."""

    class Pipe(io.RawIOBase):
        written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.written += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in GOOD.items():
            archive.writestr(name, content)
    return pipe.written


def _with_zip64_sizes() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        with archive.open(WEIGHTS, "w", force_zip64=True) as entry:
            entry.write(CONTENT)
        archive.writestr("adapter_config.json", CONFIG)
    return packed.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        zipped(GOOD),
        zipped(GOOD, method=zipfile.ZIP_STORED),
        zipped(GOOD, comment=b"made by a packer"),
        zipped({"customerA/": b"", **{f"customerA/{name}": GOOD[name] for name in GOOD}}),
        zipped({f"./{name}": content for name, content in GOOD.items()}),
        zipped({"a/b/c/" + name: content for name, content in reversed(GOOD.items())}),
        _streamed(),
        _with_zip64_sizes(),
    ],
    ids=["deflated", "stored", "comment", "folder", "dot", "deep", "streamed", "zip64"],
)
def test_the_adapter_is_found_however_it_was_packed(unpack: Unpack, archive: bytes) -> None:
    assert unpack(archive) == Unpacked(weights=CONTENT, config=CONFIG.encode())


def test_a_file_that_is_no_zip_stays_as_it_is(unpack: Unpack) -> None:
    assert unpack(b"no zip", b"{}") == Unpacked(weights=b"no zip", config=b"{}")


def test_other_files_are_passed_over(unpack: Unpack) -> None:
    others: dict[str, bytes | str] = {
        "customerA/README.md": "# A",
        "customerA/tokenizer.json": "{}",
        "customerA/tokenizer_config.json": "{}",
        "customerA/optimizer.pt": b"\x80",
        "customerA/training_args.bin": b"\x80",
        "customerA/Stoßzeit.txt": "non-ASCII",
        "customerA/config.json": json.dumps({"peft_type": "another"}),
        "customerA/.DS_Store": b"\0",
        "customerA/._adapter_model.safetensors": b"\0",
        "__MACOSX/customerA/._adapter_model.safetensors": b"\0",
        "__MACOSX/customerA/adapter_model.safetensors": b"\0",
        "__MACOSX/customerA/._old.zip": b"\0",
        "runs/config.json": "no JSON",
    }
    good = {f"customerA/{name}": content for name, content in GOOD.items()}
    unpacked = unpack(zipped({**others, **good}))
    assert unpacked == Unpacked(weights=CONTENT, config=CONFIG.encode())


def test_a_config_json_is_the_config_if_peft_wrote_it(unpack: Unpack) -> None:
    assert unpack(zipped({WEIGHTS: CONTENT, "config.json": CONFIG})).config == CONFIG.encode()
    of_a_base_model = zipped({WEIGHTS: CONTENT, "config.json": '{"model_type": "llama"}'})
    assert unpack(of_a_base_model).config is None


def test_a_bundle_without_a_config_takes_the_one_sent_beside_it(unpack: Unpack) -> None:
    archive = zipped({WEIGHTS: CONTENT})
    assert unpack(archive).config is None
    assert unpack(archive, b"{}").config == b"{}"


@pytest.mark.parametrize("name", ["adapter_config.json", "config.json"])
def test_two_configs_are_refused(refusal: Callable[..., str], name: str) -> None:
    words = refusal(zipped({WEIGHTS: CONTENT, name: CONFIG}), b"{}", param="config")
    assert f"'{name}'" in words
    assert "Leave out the one beside it, 'config'." in words


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"README.md": "x"}, "has no adapter_model.safetensors. It holds 'README.md'"),
        ({"a/": b""}, "nothing of use"),
        ({"adapter_model.bin": b"x"}, "'adapter_model.bin'"),
        ({"a/adapter_model.PT": b"x"}, "Convert the adapter to safetensors"),
        ({f"{name}/{WEIGHTS}": b"x" for name in "ab"}, f"2 adapters: 'a/{WEIGHTS}', 'b/{WEIGHTS}'"),
        ({WEIGHTS: b"x", "inner.zip": b"x"}, "'inner.zip' is itself an archive"),
        ({WEIGHTS: b"x", "a/inner.tar.GZ": b"x"}, "'a/inner.tar.GZ' is itself an archive"),
        ({f"a/{WEIGHTS}": b"x", "adapter_config.json": CONFIG}, "not in the folder of"),
        ({WEIGHTS: b"x", "config.json": "{"}, "'config.json' is not valid JSON"),
        ({WEIGHTS: b"x", "config.json": b"[]"}, "'config.json' holds"),
        ({WEIGHTS: b"x", "adapter_config.json": b" " * (MAX_CONFIG_BYTES + 1)}, "for a config"),
        ({f"/{WEIGHTS}": b"x"}, f"'/{WEIGHTS}' has a name that is not allowed"),
        ({f"../{WEIGHTS}": b"x"}, f"'../{WEIGHTS}' has a name"),
        ({**GOOD, "a/../../b": b"x"}, "'a/../../b' has a name"),
        ({**GOOD, "a\\b": b"x"}, r"'a\\b' has a name"),
        ({**GOOD, "c:/b": b"x"}, "'c:/b' has a name"),
        ({**GOOD, ".": b"x"}, "'.' has a name"),
        ({**GOOD, "x" * (MAX_NAME_LENGTH + 1): b""}, f"name of {MAX_NAME_LENGTH + 1} characters"),
        ({**GOOD, f"./{WEIGHTS}": b"x"}, f"'{WEIGHTS}' is there twice"),
        ({**GOOD, f"{WEIGHTS}/": b""}, f"'{WEIGHTS}' is there twice"),
        ({str(index): b"" for index in range(MAX_ENTRIES + 1)}, f"{MAX_ENTRIES + 1} entries"),
        ({}, "The zip is empty"),
    ],
)
def test_what_may_not_be_in_a_bundle_is_named(
    refusal: Callable[..., str], files: dict[str, bytes], words: str
) -> None:
    assert words in refusal(zipped(files))


def test_a_name_with_a_nul_is_refused(refusal: Callable[..., str]) -> None:
    archive = zipped({f"{WEIGHTS}_.txt": b"x"}).replace(b"safetensors_", b"safetensors\0")
    assert r"safetensors\x00.txt' has a name" in refusal(archive)


def test_a_name_that_is_there_twice_is_refused(refusal: Callable[..., str]) -> None:
    archive = zipped({WEIGHTS: b"1", WEIGHTS[:-1] + "_": b"2"})
    archive = archive.replace(WEIGHTS[:-1].encode() + b"_", WEIGHTS.encode())
    assert f"'{WEIGHTS}' is there twice" in refusal(archive)


@pytest.mark.parametrize(
    "kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR]
)
def test_links_and_special_files_are_refused(refusal: Callable[..., str], kind: int) -> None:
    archive = zipped({"link": b"/etc/passwd", **GOOD})
    mode = struct.pack("<H", kind | 0o777)
    archive = with_bytes(archive, central_start(archive) + CENTRAL_MODE, mode)
    assert "'link' is a link or another special file" in refusal(archive)


def test_a_packer_without_modes_is_fine(unpack: Unpack) -> None:
    archive = zipped(GOOD)
    archive = with_bytes(archive, central_start(archive) + CENTRAL_MODE, bytes(2))
    assert unpack(archive).weights == CONTENT


@pytest.mark.parametrize("flags", [0x1, 0x40, 0x2000])
@pytest.mark.parametrize("first", [WEIGHTS, "README.md"])
def test_encrypted_entries_are_refused(refusal: Callable[..., str], first: str, flags: int) -> None:
    archive = declaring(zipped({first: b"x", **GOOD}), flags=flags)
    assert f"'{first}' is encrypted" in refusal(archive)


@pytest.mark.parametrize("method", [1, 9, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 93, 99])
def test_other_compressions_are_refused(refusal: Callable[..., str], method: int) -> None:
    assert f"compressed by method {method}" in refusal(declaring(zipped(GOOD), method=method))


def test_a_patch_is_refused(refusal: Callable[..., str]) -> None:
    assert "not supported" in refusal(declaring(zipped(GOOD), flags=0x20))


@pytest.mark.parametrize("end", [10, 200, -END_BYTES - 1, -END_BYTES, -1])
def test_a_truncated_bundle_is_refused(refusal: Callable[..., str], end: int) -> None:
    assert "cut off or damaged" in refusal(zipped(GOOD)[:end])


def test_bytes_after_the_end_are_refused(refusal: Callable[..., str]) -> None:
    assert "cut off or damaged" in refusal(zipped(GOOD) + b"x")


def test_a_shifted_directory_is_refused(refusal: Callable[..., str]) -> None:
    archive = zipped(GOOD)
    start = central_start(archive)
    assert "cut off or damaged" in refusal(archive[:start] + b"x" + archive[start:])


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", list(GOOD))
def test_a_wrong_checksum_is_refused(refusal: Callable[..., str], name: str, method: int) -> None:
    others = {other: GOOD[other] for other in GOOD if other != name}
    archive = zipped({name: GOOD[name], **others}, method=method)
    assert f"'{name}' is damaged: its checksum" in refusal(declaring(archive, crc32=7))


def test_damaged_content_is_refused(refusal: Callable[..., str]) -> None:
    archive = with_bytes(zipped(GOOD), LOCAL_BYTES + len(WEIGHTS), b"\xff")
    assert f"'{WEIGHTS}' is damaged: it can't be unpacked" in refusal(archive)


@pytest.mark.parametrize("difference", [-1, 1])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_size_that_lies_is_refused(
    refusal: Callable[..., str], method: int, difference: int
) -> None:
    declared = len(CONTENT) + difference
    crc32 = zlib.crc32(CONTENT[:declared])
    archive = declaring(zipped(GOOD, method=method), size=declared, crc32=crc32)
    words = "more" if difference < 0 else "less"
    assert f"unpacks to {words} than the {declared} bytes" in refusal(archive)


@pytest.mark.parametrize(
    "payload", [deflated(CONTENT) + b"hidden", deflated(CONTENT)[:-1], b"", b"\xff\xff"]
)
def test_a_stream_that_does_not_fill_its_bytes_is_refused(
    refusal: Callable[..., str], payload: bytes
) -> None:
    assert "can't be unpacked" in refusal(with_payload(WEIGHTS, payload, CONTENT))


@pytest.mark.parametrize(
    ("place", "content"),
    [
        (0, b"PK\x07\x08"),  # the signature
        (8, b"\0\0"),  # the method
        (14, b"\1\2\3\4"),  # the checksum
        (18, b"\1\0\0\0"),  # the packed size
        (22, b"\1\0\0\0"),  # the size
        (26, b"\1\0"),  # the name's length
        (30, b"A"),  # the name
    ],
)
def test_a_header_that_differs_from_the_directory_is_refused(
    refusal: Callable[..., str], place: int, content: bytes
) -> None:
    # The first entry has to stay a zip's start, so it is the second one that is changed.
    archive = zipped({"README.md": b"x", **GOOD})
    second = archive.index(b"PK\x03\x04", 4)
    assert "differs from the zip's directory" in refusal(
        with_bytes(archive, second + place, content)
    )


def test_an_entry_that_lies_outside_is_refused(refusal: Callable[..., str]) -> None:
    archive = zipped(GOOD)
    offset = struct.pack("<L", 2**31)
    archive = with_bytes(archive, central_start(archive) + CENTRAL_OFFSET, offset)
    assert "lies outside the zip" in refusal(archive)


def test_overlapping_entries_are_refused(refusal: Callable[..., str]) -> None:
    inner = zipped({WEIGHTS: CONTENT})
    inner_start = central_start(inner)
    outer = zipped({"README.md": inner[:inner_start]}, method=zipfile.ZIP_STORED)
    outer_start = central_start(outer)
    offset = outer.index(inner[:inner_start])
    directory = outer[outer_start:-END_BYTES] + with_bytes(
        inner[inner_start:-END_BYTES], CENTRAL_OFFSET, struct.pack("<L", offset)
    )
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), outer_start, 0)
    assert "'README.md' overlaps what follows it" in refusal(outer[:outer_start] + directory + end)


def test_content_that_runs_into_the_directory_is_refused(refusal: Callable[..., str]) -> None:
    archive = zipped({WEIGHTS: CONTENT}, method=zipfile.ZIP_STORED)
    size = len(CONTENT) + 10
    assert "overlaps what follows" in refusal(declaring(archive, size=size, packed=size))


def test_a_directory_with_another_count_is_refused(refusal: Callable[..., str]) -> None:
    archive = zipped(GOOD)
    count = struct.pack("<2H", 1, 1)
    archive = with_bytes(archive, len(archive) - END_BYTES + 8, count)
    assert "lists 2 entries, but says 1" in refusal(archive)


def test_a_directory_that_is_no_directory_is_refused(refusal: Callable[..., str]) -> None:
    archive = zipped(GOOD)
    assert "can't be read" in refusal(with_bytes(archive, central_start(archive), b"XX"))


def test_a_name_that_is_not_utf_8_is_refused(refusal: Callable[..., str]) -> None:
    archive = zipped({"Stoß": b"x", **GOOD}).replace("ß".encode(), b"\xff\xff")
    assert "can't be read" in refusal(archive)


def test_an_absurd_directory_is_refused_unread(refusal: Callable[..., str]) -> None:
    archive = zipped(GOOD)
    size = struct.pack("<L", MAX_DIRECTORY_BYTES + 1)
    archive = with_bytes(archive, len(archive) - END_BYTES + 12, size)
    assert f"a directory of {MAX_DIRECTORY_BYTES + 1} bytes" in refusal(archive)


def test_zip64_archives_and_parts_are_refused(refusal: Callable[..., str]) -> None:
    archive = zipped(GOOD)
    locator = b"PK\x06\x07" + bytes(16)
    assert "Zip64" in refusal(archive[:-END_BYTES] + locator + archive[-END_BYTES:])
    assert "several parts" in refusal(with_bytes(archive, len(archive) - END_BYTES + 4, b"\1"))


def test_a_bomb_is_refused_before_it_is_unpacked(unpack: Unpack) -> None:
    bomb = zipped({WEIGHTS: bytes(TIER.max_adapter_bytes + 1)})
    assert len(bomb) < 10_000
    with pytest.raises(AdapterTooLargeError, match="'shared'"):
        unpack(bomb)


def test_weights_of_exactly_the_limit_pass(unpack: Unpack) -> None:
    archive = zipped({WEIGHTS: bytes(TIER.max_adapter_bytes)})
    assert len(unpack(archive).weights) == TIER.max_adapter_bytes


@pytest.mark.parametrize("name", list(GOOD))
def test_a_bomb_that_lies_is_stopped_at_the_size_it_declares(
    refusal: Callable[..., str], name: str
) -> None:
    zeros = bytes(200_000_000)
    bomb = declaring(zipped({name: zeros, WEIGHTS: CONTENT} | {name: zeros}), size=1000)
    tracemalloc.start()
    started = time.monotonic()
    try:
        assert "unpacks to more than the 1000 bytes" in refusal(bomb)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8_000_000
    # Generous, for a busy machine.
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_byte_more_than_declared_comes_out(method: int) -> None:
    archive = io.BytesIO(declaring(zipped({WEIGHTS: bytes(9_000_000)}, method=method), size=5))
    [entry] = read_entries(archive)
    content = bytearray()
    with pytest.raises(InvalidAdapterError, match="more than the 5 bytes"):
        content.extend(piece for pieces in unpack_entry(archive, entry) for piece in pieces)
    assert len(content) <= 5
    # It stopped, and didn't only count on to the end.
    assert archive.tell() < 2_000_000


def test_a_folder_that_is_unwritable_is_no_refusal(tmp_path: Path) -> None:
    """The server's own trouble is not blamed on the upload."""
    received = tmp_path / "received"
    received.write_bytes(zipped(GOOD))
    (tmp_path / "uploads").write_bytes(b"not a folder")
    files = AdapterFiles(weights=received, weights_sha256="", config=None)
    staging_file = partial(staged_file, tmp_path / "uploads")
    with pytest.raises(OSError), unbundled(files, tier=TIER, staging_file=staging_file):  # noqa: PT011
        pass
