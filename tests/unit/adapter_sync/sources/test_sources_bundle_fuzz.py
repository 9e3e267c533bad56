"""Whatever comes in as a zip, the answer is its adapter or a refusal, and no file is left."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter_sync.errors import AdapterTooLargeError, InvalidAdapterError
from adapter_sync.sources.bundle import unbundled
from adapter_sync.sources.files import AdapterFiles
from adapter_sync.staging import staged_file
from adapter_sync.tiers import load_tiers
from tests.zips import zipped

TIER = replace(load_tiers().named("shared"), max_adapter_bytes=5000)
WEIGHTS = "adapter_model.safetensors"
CONFIG = json.dumps({"peft_type": "LORA", "r": 4})
GOOD = {"a/": b"", "a/README.md": b"# A", f"a/{WEIGHTS}": bytes(range(256)) * 10}
GOOD["a/adapter_config.json"] = CONFIG.encode()
ARCHIVES = [
    zipped(GOOD),
    zipped(GOOD, method=zipfile.ZIP_STORED),
    zipped({WEIGHTS: b"x" * 5000, "config.json": CONFIG}, comment=b"PK"),
    zipped({}),
]
fuzz = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# What the archive's own fields are made of, so that one mutation often makes another valid one.
signatures = st.sampled_from([b"\x03\x04", b"\1\2", b"\5\6", b"\6\6", b"\6\7", b"\7\x08"])
pieces = (
    st.binary(max_size=8)
    | signatures.map(lambda end: b"PK" + end)
    | st.sampled_from([bytes(4), b"\xff" * 4, b"\1\0", b"\x08\0", b"..", b"/", b"\\", b"\0"])
)
names = (
    st.sampled_from([*GOOD, WEIGHTS, "config.json", "adapter_config.json", "adapter_model.bin"])
    | st.sampled_from(["__MACOSX/x", "._x", ".DS_Store", "x.zip", ".", "./", "..", "//", "a//b"])
    | st.text(st.characters(codec="utf-8"), max_size=12)
)
contents = st.binary(max_size=40) | st.sampled_from(
    [CONFIG.encode(), b"{}", b"[]", b"{", bytes(6000)]
)
Try = Callable[[bytes, bytes | None], None]


@pytest.fixture
def try_out(tmp_path: Path) -> Try:
    received, uploads = tmp_path / "received", tmp_path / "uploads"

    def try_out(archive: bytes, config: bytes | None) -> None:
        received.write_bytes(archive)
        files = AdapterFiles(weights=received, weights_sha256="as it came", config=config)
        try:
            with unbundled(files, tier=TIER, staging_file=partial(staged_file, uploads)) as found:
                _check(archive, found)
        except (InvalidAdapterError, AdapterTooLargeError) as error:
            # What the gateway does with it.
            json.dumps({"message": str(error)}, ensure_ascii=False).encode("utf-8")
        assert not uploads.exists() or list(uploads.iterdir()) == []
        assert {path.name for path in tmp_path.iterdir()} <= {"received", "uploads"}

    return try_out


def _check(archive: bytes, found: AdapterFiles) -> None:
    if not archive.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        assert found.weights_sha256 == "as it came"
        return
    weights = found.weights.read_bytes()
    assert len(weights) <= TIER.max_adapter_bytes
    assert found.weights_sha256 == hashlib.sha256(weights).hexdigest()
    # Another reader has to see the same.
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        of_adapter = [name for name in opened.namelist() if Path(name).name == WEIGHTS]
        assert weights in [opened.read(name) for name in of_adapter]


@given(archive=st.binary(max_size=300), config=st.none() | st.just(b"{}"))
@fuzz
def test_any_bytes(try_out: Try, archive: bytes, config: bytes | None) -> None:
    try_out(archive, config)
    try_out(b"PK\x03\x04" + archive, config)


@given(archive=st.sampled_from(ARCHIVES), data=st.data())
@fuzz
def test_a_good_bundle_with_a_few_bytes_changed(
    try_out: Try, archive: bytes, data: st.DataObject
) -> None:
    changed = archive
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly in the headers: they are at the start and, for the directory, at the end.
        last = max(len(changed) - 1, 0)
        place = data.draw(
            st.integers(0, min(last, 100))
            | st.integers(max(last - 320, 0), last)
            | st.integers(0, last)
        )
        removed = data.draw(st.sampled_from([0, 1, 2, 4, 8]))
        piece = data.draw(pieces | st.binary(min_size=removed, max_size=removed))
        changed = changed[:place] + piece + changed[place + removed :]
    end = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    try_out(changed[:end], None)


@given(
    files=st.lists(st.tuples(names, contents, st.integers(0, 2**32 - 1) | st.just(0)), max_size=5),
    method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]),
    config=st.none() | st.just(b"{}"),
)
@fuzz
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_any_files(
    try_out: Try, files: list[tuple[str, bytes, int]], method: int, config: bytes | None
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content, attributes in files:
            info = zipfile.ZipInfo(name)
            info.external_attr = attributes
            archive.writestr(info, content, method)
    try_out(packed.getvalue(), config)


@given(order=st.permutations(range(4)), data=st.data())
@fuzz
def test_a_good_bundle_with_its_parts_moved(
    try_out: Try, order: list[int], data: st.DataObject
) -> None:
    archive = data.draw(st.sampled_from(ARCHIVES))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(archive)), min_size=3, max_size=3)))
    parts = [archive[a:b] for a, b in zip([0, *cuts], [*cuts, len(archive)], strict=True)]
    try_out(b"".join(parts[index] for index in order), None)
