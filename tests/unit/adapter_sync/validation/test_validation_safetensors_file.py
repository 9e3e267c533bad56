"""Files that are not, or not quite, safetensors."""

from collections.abc import Callable

import pytest

from adapter_sync.validation import AdapterFacts

Q_PROJ_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
Q_PROJ_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
Refusal = Callable[..., str]
Check = Callable[..., AdapterFacts]
Raw = Callable[..., bytes]


ENTRY: dict[str, object] = {"dtype": "F32", "shape": [4, 64], "data_offsets": [0, 1024]}


def test_an_empty_file_is_refused(refusal: Refusal) -> None:
    assert "not a safetensors file, or is cut off: it has 0 bytes" in refusal(b"")


def test_a_pickled_pytorch_file_is_refused_with_its_first_bytes(refusal: Refusal) -> None:
    words = refusal(b"PK\x03\x04" + bytes(100))

    assert "not a safetensors file" in words
    assert "it has 104 bytes and starts with b'PK\\x03\\x04" in words


def test_a_header_that_is_no_json_object_is_refused(refusal: Refusal, raw: Raw) -> None:
    assert "its header starts with b'[]', expected '{'" in refusal(raw("[]"))
    assert "The safetensors header is not valid JSON: " in refusal(raw("{not json}"))
    assert "The safetensors header is not valid JSON: " in refusal(
        (2).to_bytes(8, "little") + b"{\xff"
    )


def test_a_header_nested_too_deep_is_refused(refusal: Refusal, raw: Raw) -> None:
    assert "not valid JSON: maximum recursion" in refusal(raw('{"a":' + "[" * 200_000))


def test_a_header_above_one_mebibyte_is_refused(refusal: Refusal, raw: Raw) -> None:
    assert "The safetensors header has 1048577 bytes, at most 1048576 are allowed" in refusal(
        raw("{" + " " * 1024 * 1024)
    )


def test_a_header_of_exactly_one_mebibyte_is_read(refusal: Refusal, raw: Raw) -> None:
    assert "holds no tensors" in refusal(raw("{}" + " " * (1024 * 1024 - 2)))


@pytest.mark.parametrize(
    "header",
    [
        f'{{"{Q_PROJ_A}": 1, "{Q_PROJ_A}": 2}}',
        f'{{"{Q_PROJ_A}": {{"dtype": "F32", "dtype": "F16"}}}}',
    ],
)
def test_a_key_that_is_there_twice_is_refused(refusal: Refusal, raw: Raw, header: str) -> None:
    words = refusal(raw(header))

    assert "is there twice" in words
    assert Q_PROJ_A in words or "'dtype'" in words


def test_more_than_twenty_thousand_tensors_are_refused(refusal: Refusal, raw: Raw) -> None:
    most = {f"{number:x}": 0 for number in range(20_000)}

    assert "holds 20001 tensors, at most 20000 are allowed" in refusal(raw(most | {"x": 0}))
    assert "The tensor '0' is described by 0" in refusal(raw(most))


@pytest.mark.parametrize("metadata", [{"lora_alpha": 8}, ["x"], None, "x"])
def test_metadata_that_is_not_text_is_refused(refusal: Refusal, raw: Raw, metadata: object) -> None:
    words = refusal(raw({"__metadata__": metadata}))

    assert f"__metadata__ is {metadata!r}, expected an object of strings" in words


@pytest.mark.parametrize(
    ("changes", "found", "expected"),
    [
        ({"dtype": "F8_E4M3"}, "dtype 'F8_E4M3'", "expected one of BF16, F16, F32"),
        ({"dtype": "I64"}, "dtype 'I64'", "expected one of BF16, F16, F32"),
        ({"dtype": ["F32"]}, "dtype ['F32']", "expected one of BF16, F16, F32"),
        ({"shape": [-4, 64]}, "shape [-4, 64]", "expected a list of sizes"),
        ({"shape": [4.0, 64]}, "shape [4.0, 64]", "expected a list of sizes"),
        ({"shape": [True, 64]}, "shape [True, 64]", "expected a list of sizes"),
        ({"shape": [10**4000, 10**4000]}, "shape [1000", "expected a list of sizes"),
        ({"shape": [1] * 9}, "shape [1, 1", "expected a list of sizes"),
        ({"shape": 64}, "shape 64", "expected a list of sizes"),
        ({"data_offsets": None}, "data_offsets None", "expected [begin, end]"),
        ({"shape": "big"}, "shape 'big'", "expected a list of sizes"),
        ({"data_offsets": [0]}, "data_offsets [0]", "expected [begin, end]"),
        ({"data_offsets": [-4, 1020]}, "data_offsets [-4, 1020]", "expected [begin, end]"),
        ({"data_offsets": [0, 1020]}, "data_offsets [0, 1020]", "expected 1024 bytes for shape"),
        ({"extra": 1}, "'extra': 1", "expected dtype, shape and data_offsets"),
    ],
)
def test_a_tensor_described_wrongly_is_refused(
    refusal: Refusal, raw: Raw, changes: dict[str, object], found: str, expected: str
) -> None:
    words = refusal(raw({Q_PROJ_A: ENTRY | changes}, bytes(1024)))

    assert f"The tensor '{Q_PROJ_A}'" in words
    assert found in words
    assert expected in words


def test_the_headers_order_is_not_the_datas(check: Check, raw: Raw) -> None:
    second = ENTRY | {"shape": [64, 4], "data_offsets": [1024, 2048]}

    assert check(raw({Q_PROJ_B: second, Q_PROJ_A: ENTRY}, bytes(2048))).rank == 4


@pytest.mark.parametrize("begin", [1020, 1028])
def test_an_overlap_or_a_hole_between_tensors_is_refused(
    refusal: Refusal, raw: Raw, begin: int
) -> None:
    second = ENTRY | {"shape": [64, 4], "data_offsets": [begin, begin + 1024]}
    header = {Q_PROJ_A: ENTRY, Q_PROJ_B: second}
    file = raw(header, bytes(begin + 1024))
    data_start = len(file) - begin - 1024

    words = refusal(file)

    assert f"The tensor '{Q_PROJ_B}' begins at byte {data_start + begin}" in words
    assert f"expected {data_start + 1024}" in words


@pytest.mark.parametrize("size", [1023, 1025, 0])
def test_a_file_that_is_cut_off_or_goes_on_is_refused(
    refusal: Refusal, raw: Raw, size: int
) -> None:
    file = raw({Q_PROJ_A: ENTRY}, bytes(size))

    words = refusal(file)

    assert f"The tensors end at byte {len(file) - size + 1024}" in words
    assert f"the file has {len(file)} bytes" in words


def test_a_name_that_is_not_unicode_is_shown_in_ascii(refusal: Refusal, raw: Raw) -> None:
    words = refusal(raw('{"\\ud800": 1}'))

    assert "The tensor '\\ud800' is described by 1" in words
    assert words.isascii()
