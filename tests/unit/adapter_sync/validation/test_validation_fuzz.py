"""Whatever comes in, the answer is a valid adapter or InvalidAdapterError, never another error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation import check_adapter

PREFIX = "base_model.model.model.layers.0.self_attn"
fuzz = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 4, 8, 17, 10**400, 2**63])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["q_proj", "all-linear", "none", "LORA", "gaussian", "model.layers.0", "\ud800"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_dora",
        "use_rslora",
    ]
)
patterns = st.dictionaries(
    st.sampled_from(["q_proj", "layers.0", ".", "..", "self.attn.q_proj", "a|b"]), scalars
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "F8_E5M2", "", 3]),
        "shape": st.lists(st.sampled_from([4, 64, 32, 0, -1, 2**62, True, 4.0]), max_size=3)
        | values,
        "data_offsets": st.lists(st.sampled_from([0, 512, 1024, 2048, -1, 2**64]), max_size=3)
        | values,
    },
)
names = st.sampled_from(
    [
        f"{PREFIX}.q_proj.lora_A.weight",
        f"{PREFIX}.q_proj.lora_B.weight",
        f"{PREFIX}.q_proj.lora_A.default.weight",
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model..lora_A.weight",
        "__metadata__",
    ]
) | st.text(max_size=20)

Try = Callable[[bytes, bytes | None], None]


@pytest.fixture
def try_out(weights: Path, base: BaseModel) -> Try:
    def try_out(file: bytes, config: bytes | None) -> None:
        weights.write_bytes(file)
        try:
            facts = check_adapter(weights, config=config, lora_alpha=None, base=base)
        except InvalidAdapterError as error:
            # What the gateway does with it.
            json.dumps({"message": str(error)}, ensure_ascii=False).encode("utf-8")
        else:
            assert 1 <= facts.rank <= base.max_lora_rank
            json.dumps(facts.config, allow_nan=False).encode("utf-8")
            # The engine's own reader has to see the same modules.
            with safe_open(weights, framework="numpy") as opened:
                leaves = {name.split(".")[-3] for name in opened.keys()}  # noqa: SIM118
            assert leaves == set(facts.target_modules)

    return try_out


@pytest.fixture
def good(tensors: dict[str, npt.NDArray[Any]]) -> bytes:
    return save(tensors)


@given(file=st.binary(max_size=200), config=st.none() | st.binary(max_size=200))
@fuzz
def test_any_bytes(try_out: Try, file: bytes, config: bytes | None) -> None:
    try_out(file, config)


@given(data=st.data())
@fuzz
def test_a_good_file_with_a_few_bytes_changed(
    try_out: Try, good: bytes, data: st.DataObject
) -> None:
    changed = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        # Mostly in the header, where it matters.
        place = data.draw(st.integers(0, 900) | st.integers(0, len(good) - 1))
        changed[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    try_out(bytes(changed[:end]), None)


@given(header=st.dictionaries(names, entries | values, max_size=4), size=st.integers(0, 2048))
@fuzz
def test_any_header(try_out: Try, raw: Callable[..., bytes], header: object, size: int) -> None:
    try_out(raw(header, bytes(size)), None)


@given(
    changes=st.dictionaries(fields, values | patterns, max_size=4),
    more=st.dictionaries(st.text(max_size=8), values, max_size=2),
)
@fuzz
def test_any_config(
    try_out: Try,
    good: bytes,
    config: dict[str, object],
    changes: dict[str, object],
    more: dict[str, object],
) -> None:
    try_out(good, json.dumps(config | changes | more).encode())
