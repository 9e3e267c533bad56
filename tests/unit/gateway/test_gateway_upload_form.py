"""The upload form is parsed as it streams, in pieces of any size."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from adapter_sync.errors import AdapterTooLargeError
from adapter_sync.tiers import load_tiers
from gateway.errors import InvalidRequestError
from gateway.limits import Limits
from gateway.upload_form import UploadedAdapter, UploadForm

BOUNDARY = "----boundary7MA4YWxk"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"
TIER = replace(load_tiers().named("shared"), max_adapter_bytes=10_000)
GOOD = (("name", b"finance"), ("base_model", b"org/tiny"), ("file", b"weights"))


def _body(*fields: tuple[str, bytes], end: bool = True) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"'.encode()
        + (b'; filename="a.bin"\r\ncontent-type: application/x' if name == "file" else b"")
        + b"\r\n\r\n"
        + value
        + b"\r\n"
        for name, value in fields
    ]
    return b"".join(parts) + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def _upload(
    body: bytes, folder: Path, *, piece_bytes: int = 100, content_type: str = CONTENT_TYPE
) -> UploadedAdapter:
    form = UploadForm(content_type, folder / "staged", tier=TIER, limits=Limits())
    try:
        for start in range(0, len(body), piece_bytes):
            form.feed(body[start : start + piece_bytes])
        return form.finish()
    finally:
        form.close()


def _refusal(body: bytes, folder: Path, content_type: str = CONTENT_TYPE) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        _upload(body, folder, content_type=content_type)
    return caught.value


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary(min_size=1, max_size=5000)
    | st.just(b"\r\n--" * 1000)
    | st.just(f"\r\n--{BOUNDARY[:-1]}".encode() * 50),
    piece_bytes=st.sampled_from([1, 2, 7, 1000, 10_000]),
)
def test_the_file_arrives_whole_in_pieces_of_any_size(
    tmp_path: Path, content: bytes, piece_bytes: int
) -> None:
    # streaming-form-data 2.1 takes a piece that is a value's first byte, '-', for a boundary. The
    # gateway's own pieces are of 1 MiB, but for the last.
    assume(piece_bytes > 1 or not content.startswith(b"-"))
    body = _body(("config", b"{}"), ("file", content), ("name", b"a"), ("base_model", b"b"))
    uploaded = _upload(body, tmp_path, piece_bytes=piece_bytes)
    assert (tmp_path / "staged").read_bytes() == content
    assert uploaded.weights_sha256 == hashlib.sha256(content).hexdigest()
    assert (uploaded.name, uploaded.base_model, uploaded.config) == ("a", "b", b"{}")


def test_the_optional_fields_may_be_absent(tmp_path: Path) -> None:
    uploaded = _upload(_body(*GOOD), tmp_path)
    assert (uploaded.config, uploaded.lora_alpha, uploaded.replace) == (None, None, False)


def test_lora_alpha_is_a_number(tmp_path: Path) -> None:
    assert _upload(_body(*GOOD, ("lora_alpha", b"16.5")), tmp_path).lora_alpha == 16.5


@pytest.mark.parametrize(
    ("text", "replace"),
    [(b"true", True), (b"TRUE", True), (b"1", True), (b"false", False), (b"0", False)],
)
def test_replace_is_true_or_false(tmp_path: Path, text: bytes, *, replace: bool) -> None:
    assert _upload(_body(*GOOD, ("replace", text)), tmp_path).replace is replace


@pytest.mark.parametrize("text", [b"yes", b"2", b"true ", b"\xff"])
def test_another_replace_is_refused(tmp_path: Path, text: bytes) -> None:
    assert _refusal(_body(*GOOD, ("replace", text)), tmp_path).param == "replace"


@pytest.mark.parametrize("name", ["name", "base_model", "file"])
def test_a_missing_field_is_named(tmp_path: Path, name: str) -> None:
    error = _refusal(_body(*(field for field in GOOD if field[0] != name)), tmp_path)
    assert (error.param, error.code) == (name, "missing_required_parameter")


@pytest.mark.parametrize("name", ["name", "base_model", "file", "config", "lora_alpha", "replace"])
def test_an_empty_field_is_named(tmp_path: Path, name: str) -> None:
    others = (field for field in GOOD if field[0] != name)
    error = _refusal(_body((name, b""), *others), tmp_path)
    assert (error.param, error.code) == (name, "empty_field")


@pytest.mark.parametrize("name", ["name", "file", "config"])
def test_a_repeated_field_is_named(tmp_path: Path, name: str) -> None:
    others = (field for field in GOOD if field[0] != name)
    error = _refusal(_body((name, b"1"), *others, (name, b"2")), tmp_path)
    assert error.param == name
    assert "twice" in str(error)


def test_an_unknown_field_is_named(tmp_path: Path) -> None:
    error = _refusal(_body(*GOOD, ("priority", b"1")), tmp_path)
    assert (error.param, error.code) == ("priority", "unknown_parameter")


@pytest.mark.parametrize("alpha", [b"0", b"-1", b"nan", b"inf", b"much", b"\xff"])
def test_a_lora_alpha_that_is_no_positive_number_is_refused(tmp_path: Path, alpha: bytes) -> None:
    assert _refusal(_body(*GOOD, ("lora_alpha", alpha)), tmp_path).param == "lora_alpha"


def test_a_file_over_the_tiers_limit_is_refused_as_soon_as_it_is(tmp_path: Path) -> None:
    form = UploadForm(CONTENT_TYPE, tmp_path / "staged", tier=TIER, limits=Limits())
    form.feed(_body(("file", b"x" * TIER.max_adapter_bytes), end=False)[:-2])
    with pytest.raises(AdapterTooLargeError, match="10000 bytes"):
        form.feed(b"x" * 5000)
    form.close()
    assert (tmp_path / "staged").stat().st_size <= TIER.max_adapter_bytes


def test_a_file_of_exactly_the_limit_passes(tmp_path: Path) -> None:
    body = _body(*GOOD[:2], ("file", b"x" * TIER.max_adapter_bytes))
    _upload(body, tmp_path)
    assert (tmp_path / "staged").stat().st_size == TIER.max_adapter_bytes


@pytest.mark.parametrize(("name", "size"), [("name", 1025), ("config", 1024 * 1024 + 1)])
def test_a_text_over_its_limit_is_refused(tmp_path: Path, name: str, size: int) -> None:
    error = _refusal(_body((name, b"x" * size)), tmp_path)
    assert (error.param, error.code) == (name, "field_too_large")


def test_headers_that_never_end_are_not_kept_in_memory(tmp_path: Path) -> None:
    start = f"--{BOUNDARY}\r\ncontent-disposition: form-data; x=".encode()
    error = _refusal(start + b"x" * 200_000, tmp_path)
    assert error.code == "invalid_form"


@pytest.mark.parametrize(
    "body",
    [
        b"not a form",
        _body(*GOOD, end=False)[:-2],
        _body(*GOOD).replace(b"form-data", b"attachment"),
        _body(*GOOD).replace(b'name="name"', b'name="\xff"'),
    ],
)
def test_a_malformed_form_is_refused(tmp_path: Path, body: bytes) -> None:
    assert _refusal(body, tmp_path).code in {"invalid_form", "unknown_parameter"}


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=x"]
)
def test_another_content_type_is_refused(tmp_path: Path, content_type: str) -> None:
    error = _refusal(_body(*GOOD), tmp_path, content_type=content_type)
    assert error.code == "invalid_content_type"
