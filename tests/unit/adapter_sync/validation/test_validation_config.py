"""adapter_config.json files: refused, warned about and normalised."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation import AdapterFacts, check_adapter

Refusal = Callable[..., str]
Check = Callable[..., AdapterFacts]
Config = dict[str, object]
Tensors = dict[str, npt.NDArray[Any]]


def test_the_config_to_serve_has_vetted_settings_only(
    check: Check, tensors: Tensors, config: Config
) -> None:
    config |= {
        "lora_dropout": 0.1,
        "auto_mapping": None,
        "peft_version": "0.21.2",
        "revision": None,
    }

    facts = check(tensors, config)

    assert facts.config == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny-llama",
        "inference_mode": True,
        "bias": "none",
        "r": 4,
        "lora_alpha": 6,
        "use_rslora": False,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    assert '"lora_alpha": 6,' in json.dumps(facts.config)
    assert (facts.rank, facts.lora_alpha, facts.warnings) == (4, 6, ())
    assert facts.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "is not valid JSON: "),
        (b"{", "is not valid JSON: "),
        (b"\xff{}", "is not valid JSON: "),
        (b"[1]", "holds [1], expected a JSON object"),
        (b'{"r": 4, "r": 8}', "is not valid JSON: the key 'r' is there twice"),
        (b'{"lora_alpha": NaN}', "is not valid JSON: NaN is not a JSON value"),
        (b"[" * 200_000, "is not valid JSON: maximum recursion"),
        (b" " * (256 * 1024 + 1), "has 262145 bytes, at most 262144 are allowed"),
    ],
)
def test_what_is_no_proper_json_object_is_refused(
    refusal: Refusal, tensors: Tensors, data: bytes, fault: str
) -> None:
    assert f"adapter_config.json {fault}" in refusal(tensors, data, param="config")


def test_a_config_of_exactly_256_kib_and_the_largest_alpha_are_accepted(
    check: Check, tensors: Tensors, config: Config
) -> None:
    data = json.dumps(config | {"lora_alpha": 1_000_000}).encode()

    assert check(tensors, data.ljust(256 * 1024)).lora_alpha == 1_000_000


@pytest.mark.parametrize("field", ["peft_type", "r", "lora_alpha", "target_modules"])
def test_a_missing_setting_is_refused(
    refusal: Refusal, tensors: Tensors, config: Config, field: str
) -> None:
    del config[field]

    words = refusal(tensors, config, param="config")

    assert f"adapter_config.json lacks '{field}', expected peft_type, r, lora_alpha" in words


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("peft_type", "IA3", "'LORA'"),
        ("task_type", "SEQ_CLS", "'CAUSAL_LM' or null"),
        ("bias", "all", "'none'"),
        ("use_dora", True, "it unset: DoRA can't be served"),
        ("lora_bias", True, "it unset: LoRA biases"),
        ("modules_to_save", ["lm_head"], "it unset: whole trained modules"),
        ("modules_to_save", ["score"], "it unset: whole trained modules"),
        ("alora_invocation_tokens", [1, 2], "it unset: activated LoRA (aLoRA)"),
        ("layer_replication", [[0, 2], [1, 2]], "it unset: layer replication"),
        ("use_qalora", True, "it unset: QALoRA"),
        ("use_bdlora", {"nblocks": 2}, "it unset: block-diagonal LoRA"),
        ("trainable_token_indices", [5], "it unset: trained tokens"),
        ("megatron_config", {"a": 1}, "it unset: Megatron's layers"),
        ("target_parameters", ["experts.up"], "it unset: LoRA on parameters"),
        ("kasa_config", {"beta": 1}, "it unset: KaSA"),
        ("monteclora_config", {"a": 1}, "it unset: MonteCLoRA"),
        ("arrow_config", {"a": 1}, "it unset: Arrow"),
        ("init_lora_weights", "pissa", "a boolean or one of eva, gaussian, mica, orthogonal"),
        ("init_lora_weights", "pissa_niter_16", "path_initial_model_for_weight_conversion"),
        ("init_lora_weights", "olora", "a boolean or one of"),
        ("init_lora_weights", "corda", "a boolean or one of"),
        ("init_lora_weights", "loftq", "a boolean or one of"),
        ("init_lora_weights", "lora_ga", "a boolean or one of"),
        ("init_lora_weights", ["gaussian"], "a boolean or one of"),
        ("use_rslora", "yes", "true or false"),
        ("r", 0, "a whole number above 0"),
        ("r", -4, "a whole number above 0"),
        ("r", 4.0, "a whole number above 0"),
        ("r", True, "a whole number above 0"),
        ("r", "4", "a whole number above 0"),
        ("lora_alpha", 0, "a number above 0"),
        ("lora_alpha", -1.5, "a number above 0"),
        ("lora_alpha", "8", "a number above 0"),
        ("lora_alpha", True, "a number above 0"),
        ("lora_alpha", 1_000_001, "at most 1000000"),
        ("lora_alpha", -(10**4000), "a number above 0"),
        ("target_modules", [], "a list of module names"),
        ("target_modules", ["q_proj", 1], "a list of module names"),
        ("target_modules", {"q_proj": 1}, "a list of module names"),
        ("target_modules", r".*\.(q_proj|v_proj)", "a list of names: in a string only 1 to 256"),
        ("exclude_modules", "(a+)+$", "a list of names: in a string only 1 to 256"),
        ("exclude_modules", {"a": 1}, "a list of module names"),
        ("layers_to_transform", ["0"], "layer numbers"),
        ("layers_to_transform", True, "layer numbers"),
        ("layers_to_transform", 1.5, "layer numbers"),
        ("layers_to_transform", {"0": 1}, "layer numbers"),
        ("layers_pattern", "layers", "layers_to_transform beside it"),
        ("layers_pattern", 7, "names"),
        ("rank_pattern", [4], "an object of module names and numbers"),
        ("alpha_pattern", "x", "an object of module names and numbers"),
    ],
)
def test_a_setting_that_is_not_served_is_refused(
    refusal: Refusal,
    tensors: Tensors,
    config: Config,
    field: str,
    value: object,
    expected: str,
) -> None:
    config[field] = value

    words = refusal(tensors, config, param="config")

    assert f"adapter_config.json's {field} is " in words
    assert ascii(value)[:100] in words
    assert f"expected {expected}" in words or expected in words


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("task_type", None),
        ("bias", "none"),
        ("use_dora", False),
        ("modules_to_save", []),
        ("init_lora_weights", True),
        ("init_lora_weights", False),
        ("init_lora_weights", None),
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", "eva"),
        ("init_lora_weights", "orthogonal"),
        ("loftq_config", {}),
        ("megatron_core", "megatron.core"),
        ("qalora_group_size", 16),
        ("fan_in_fan_out", False),
        ("layers_to_transform", []),
        ("some_setting_of_tomorrow", None),
    ],
)
def test_a_harmless_setting_changes_nothing(
    check: Check, tensors: Tensors, config: Config, field: str, value: object
) -> None:
    facts = check(tensors, config)

    assert check(tensors, config | {field: value}) == facts


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("q_proj|v_proj", 4), ("^model.layers", 4), ("(a+)+", 4), ("", 4), ("a" * 257, 4)],
)
def test_a_pattern_that_is_a_regular_expression_is_refused(
    refusal: Refusal, tensors: Tensors, config: Config, field: str, key: str, value: int
) -> None:
    words = refusal(tensors, config | {field: {key: value}}, param="config")

    assert f"adapter_config.json's key in {field} is {key[:100]!r}"[:80] in words
    assert "letters, digits, '_' and '.' are allowed" in words


@pytest.mark.parametrize(
    ("field", "value"), [("rank_pattern", 0), ("rank_pattern", "8"), ("alpha_pattern", -1)]
)
def test_a_pattern_with_a_wrong_number_is_refused(
    refusal: Refusal, tensors: Tensors, config: Config, field: str, value: object
) -> None:
    words = refusal(tensors, config | {field: {"q_proj": value}}, param="config")

    assert f"adapter_config.json's {field}['q_proj'] is {value!r}, expected a" in words


def test_a_pattern_with_too_many_keys_is_refused(
    check: Check, refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    config["rank_pattern"] = {f"layers.{number}": 4 for number in range(1000)}
    assert check(tensors, config).rank == 4

    config["rank_pattern"] = {f"layers.{number}": 4 for number in range(1001)}

    assert "rank_pattern has 1001 keys, at most 1000" in refusal(tensors, config, param="config")


def test_an_r_above_the_base_models_limit_is_refused(
    refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    words = refusal(tensors, config | {"r": 17}, param="config")

    assert "r is 17, at most 16 is served on the base model 'tiny-llama'" in words


def test_tensors_of_another_rank_than_r_are_refused(
    refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    words = refusal(tensors, config | {"r": 8})

    assert "The tensors of 'model.layers.0.self_attn.q_proj' have rank 4, expected 8" in words


def test_tensors_of_another_rank_than_rank_pattern_says_are_refused(
    refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    words = refusal(tensors, config | {"rank_pattern": {"layers.1.self_attn.v_proj": 8}})

    assert "'model.layers.1.self_attn.v_proj' have rank 4, expected 8" in words
    assert "rank_pattern {'layers.1.self_attn.v_proj': 8}" in words


def test_the_first_key_that_matches_counts(check: Check, tensors: Tensors, config: Config) -> None:
    config |= {"r": 8, "rank_pattern": {"layers.1.self_attn.q_proj": 4, "q_proj": 4, "v_proj": 4}}
    config["alpha_pattern"] = {"layers.1.self_attn.q_proj": 12, "q_proj": 24, "self.attn.v.proj": 5}

    facts = check(tensors, config)

    assert facts.rank == 4
    assert facts.config["r"] == 8
    assert facts.config["rank_pattern"] == {"q_proj": 4, "v_proj": 4}
    assert facts.config["alpha_pattern"] == {
        "model.layers.0.self_attn.q_proj": 24,
        "model.layers.1.self_attn.q_proj": 12,
        "v_proj": 5,
    }


def test_tensors_that_the_config_does_not_select_are_refused(
    refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    words = refusal(tensors, config | {"target_modules": ["q_proj"]})

    assert "The file has tensors of 'model.layers.0.self_attn.v_proj'" in words
    assert "expected modules that its target_modules names" in words


def test_tensors_that_the_config_excludes_are_refused(
    refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    words = refusal(tensors, config | {"exclude_modules": ["layers.1.self_attn.v_proj"]})

    assert "The file has tensors of 'model.layers.1.self_attn.v_proj'" in words


def test_a_target_without_tensors_is_refused_as_incomplete(
    refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    words = refusal(tensors, config | {"target_modules": ["q_proj", "v_proj", "k_proj"]})

    assert "The file has no tensors for 'k_proj' in adapter_config.json's target_modules" in words


def test_a_target_that_the_base_model_does_not_know_is_a_warning(
    check: Check, tensors: Tensors, config: Config
) -> None:
    facts = check(tensors, config | {"target_modules": ["q_proj", "v_proj", "query_key_value"]})

    [warning] = facts.warnings
    assert "names that the base model 'tiny-llama' doesn't know: 'query_key_value'" in warning
    assert facts.config["target_modules"] == ["q_proj", "v_proj"]


def test_layers_without_tensors_are_a_warning(
    check: Check, tensors: Tensors, config: Config
) -> None:
    first = {name: tensor for name, tensor in tensors.items() if ".layers.0." in name}

    facts = check(first, config)

    [warning] = facts.warnings
    assert "selects 2 modules of the base model 'tiny-llama' that the file has no" in warning
    assert warning.endswith("'model.layers.1.self_attn.q_proj', 'model.layers.1.self_attn.v_proj'.")
    assert facts.config["target_modules"] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
    ]


def test_layers_to_transform_has_to_name_the_layers_of_the_tensors(
    check: Check, refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    first = {name: tensor for name, tensor in tensors.items() if ".layers.0." in name}

    assert check(first, config | {"layers_to_transform": 0}).warnings == ()
    assert check(first, config | {"layers_to_transform": [0]}).warnings == ()
    words = refusal(tensors, config | {"layers_to_transform": [0]})
    assert "The file has tensors of 'model.layers.1.self_attn.q_proj'" in words
    assert "with layers_to_transform [0]" in words
    words = refusal(first, config | {"layers_to_transform": [0, 1]}, param="config")
    assert "layers_to_transform names the layers [1], expected only layers that" in words


def test_layers_pattern_says_which_number_is_the_layer(
    check: Check, refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    config |= {"layers_to_transform": [0, 1], "layers_pattern": "layers"}

    assert check(tensors, config).warnings == ()
    assert "does not select" in refusal(tensors, config | {"layers_pattern": ["blocks"]})
    words = refusal(tensors, config | {"layers_pattern": [7]}, param="config")
    assert "layers_pattern is 7, expected a list of names" in words
    words = refusal(tensors, config | {"layers_pattern": ["(a+)+"]}, param="config")
    assert "layers_pattern is '(a+)+', expected a list of names: in a string only" in words


def test_layers_that_peft_does_not_find_in_the_names_are_refused(
    weights: Path, base: BaseModel, config: Config
) -> None:
    """PEFT looks for a number after two parts of a name, so it would train nothing here."""
    flat = dataclasses.replace(base, tensor_shapes={"h.0.q_proj.weight": (8, 8)})
    prefix = "base_model.model.h.0.q_proj"
    zeros = np.zeros((4, 8), dtype=np.float32)
    tensors = {f"{prefix}.lora_A.weight": zeros, f"{prefix}.lora_B.weight": zeros.T.copy()}
    save_file(tensors, weights)
    config |= {"target_modules": ["q_proj"], "layers_to_transform": [0]}

    with pytest.raises(InvalidAdapterError, match="does not select"):
        check_adapter(weights, config=json.dumps(config).encode(), lora_alpha=None, base=flat)


def test_a_string_names_one_module_and_goes_without_layers_to_transform(
    check: Check, refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    name = "model.layers.0.self_attn.q_proj"
    one = {key: tensor for key, tensor in tensors.items() if name in key}

    assert check(one, config | {"target_modules": name}).config["target_modules"] == [name]
    words = refusal(
        one, config | {"target_modules": name, "layers_to_transform": [0]}, param="config"
    )
    assert "expected a list beside layers_to_transform" in words


def test_all_linear_covers_every_linear_layer(
    check: Check, tensors: Tensors, config: Config
) -> None:
    facts = check(tensors, config | {"target_modules": "All-Linear"})

    assert facts.config["target_modules"] == ["q_proj", "v_proj"]
    assert "selects 10 modules" in facts.warnings[0]
    assert facts.warnings[0].endswith(" and 5 more.")


@pytest.mark.parametrize(
    "name", ["tiny-llama", "org/Tiny-Llama", "/somewhere/else/tiny-llama/", "", None, 7]
)
def test_the_same_or_no_base_model_name_gives_no_warning(
    check: Check, tensors: Tensors, config: Config, name: object
) -> None:
    assert check(tensors, config | {"base_model_name_or_path": name}).warnings == ()


def test_another_base_model_name_is_a_warning_only(
    check: Check, tensors: Tensors, config: Config
) -> None:
    facts = check(tensors, config | {"base_model_name_or_path": "org/huge-llama"})

    [warning] = facts.warnings
    assert "base_model_name_or_path is 'org/huge-llama': make sure that it is" in warning
    assert facts.config["base_model_name_or_path"] == "tiny-llama"


def test_a_setting_that_is_not_known_is_a_warning(
    check: Check, tensors: Tensors, config: Config
) -> None:
    facts = check(tensors, config | {"use_tomorrows_lora": True})

    assert facts.warnings == (
        "adapter_config.json has settings that are not known here: 'use_tomorrows_lora'.",
    )
    assert "use_tomorrows_lora" not in facts.config


def test_a_lora_alpha_that_contradicts_the_config_is_refused(
    check: Check, refusal: Refusal, tensors: Tensors, config: Config
) -> None:
    assert check(tensors, config, lora_alpha=6.0).lora_alpha == 6

    words = refusal(tensors, config, lora_alpha=8.0, param="lora_alpha")
    assert "lora_alpha is 8, but adapter_config.json says 6" in words


def test_the_config_can_be_written_as_json(check: Check, tensors: Tensors, config: Config) -> None:
    facts = check(tensors, config | {"lora_alpha": 6.5, "use_rslora": True})

    assert json.loads(json.dumps(facts.config))["lora_alpha"] == 6.5
    assert facts.config["use_rslora"] is True


@pytest.mark.parametrize("layers", [128, 130])
def test_ranks_too_irregular_for_the_engine_are_refused(
    weights: Path, base: BaseModel, layers: int
) -> None:
    """Each key of a pattern costs the engine time in which no stream moves."""
    names = [f"model.layers.{number}.mlp.up_proj" for number in range(layers)]
    deep = dataclasses.replace(base, tensor_shapes={f"{name}.weight": (8, 8) for name in names})
    tensors = {}
    for number, name in enumerate(names):
        rank = 4 if number % 2 else 8
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.zeros((rank, 8), dtype=np.float16)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.zeros((8, rank), dtype=np.float16)
    save_file(tensors, weights)

    if layers > 128:
        with pytest.raises(InvalidAdapterError, match="in 65 places, at most 64 are served"):
            check_adapter(weights, config=None, lora_alpha=8, base=deep)
    else:
        assert check_adapter(weights, config=None, lora_alpha=8, base=deep).rank == 8
