"""Reads an uploaded adapter_config.json and refuses what vLLM would not follow."""

from collections.abc import Mapping
from dataclasses import dataclass

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.validation.patterns import HARMLESS_KEY, KEY_RULE, MAX_KEYS
from adapter_sync.validation.selection import ALL_LINEAR, NO_NAMES, Names, Selection
from adapter_sync.validation.strict_json import parse_object
from adapter_sync.validation.words import listed, quoted

MAX_CONFIG_BYTES = 256 * 1024
MAX_LORA_ALPHA = 1_000_000

_REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")
_REFUSED: Mapping[str, str] = {
    "alora_invocation_tokens": "activated LoRA (aLoRA) can't be served",
    "arrow_config": "Arrow routing can't be served",
    "kasa_config": "KaSA can't be served",
    "layer_replication": "layer replication can't be served",
    "lora_bias": "LoRA biases can't be served",
    "megatron_config": "Megatron's layers can't be served",
    "modules_to_save": "whole trained modules can't be served",
    "monteclora_config": "MonteCLoRA can't be served",
    "target_parameters": "LoRA on parameters that are no linear layers can't be served",
    "trainable_token_indices": "trained tokens can't be served",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA) can't be served",
    "use_dora": "DoRA can't be served",
    "use_qalora": "QALoRA can't be served",
}
# These only set the first values of lora_A and lora_B. The others, PiSSA, OLoRA, CorDA, LoftQ and
# LoRA-GA, change the base model's weights too, so their adapters are wrong on the plain base.
_HARMLESS_INITS = ("eva", "gaussian", "mica", "orthogonal")
# Settings of training and of PEFT's own book-keeping, which change nothing in the answers.
_IGNORED = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "bias",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "exclude_modules",
        "fan_in_fan_out",
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "lora_alpha",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "alpha_pattern",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
        "velora_config",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterConfig:
    """The vetted settings of an adapter_config.json."""

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    selection: Selection
    base_model_name_or_path: str | None
    warnings: tuple[str, ...]


def parse_config(data: bytes) -> AdapterConfig:
    """Read adapter_config.json. Raises InvalidAdapterError with `param` "config"."""
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidAdapterError(
            f"adapter_config.json has {len(data)} bytes, at most {MAX_CONFIG_BYTES} are allowed.",
            param="config",
        )
    config = parse_object(data, what="adapter_config.json", param="config")
    _check_features(config)
    name = config.get("base_model_name_or_path")
    return AdapterConfig(
        r=_positive_int("r", config["r"]),
        lora_alpha=_alpha("lora_alpha", config["lora_alpha"]),
        use_rslora=_flag("use_rslora", config.get("use_rslora")),
        rank_pattern={
            key: _positive_int(f"rank_pattern[{quoted(key)}]", value)
            for key, value in _pattern(config, "rank_pattern").items()
        },
        alpha_pattern={
            key: _alpha(f"alpha_pattern[{quoted(key)}]", value)
            for key, value in _pattern(config, "alpha_pattern").items()
        },
        selection=_selection(config),
        base_model_name_or_path=name if isinstance(name, str) else None,
        warnings=_warnings(config),
    )


def is_lora_alpha(value: float) -> bool:
    """Whether a number, perhaps NaN or infinity, can be an adapter's lora_alpha."""
    return 0 < value <= MAX_LORA_ALPHA


def _check_features(config: Mapping[str, object]) -> None:
    for field in _REQUIRED:
        if config.get(field) is None:
            raise InvalidAdapterError(
                f"adapter_config.json lacks {field!r}, expected {', '.join(_REQUIRED)} as PEFT "
                "writes them.",
                param="config",
            )
    if config["peft_type"] != "LORA":
        raise _refusal("peft_type", config["peft_type"], "'LORA'")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise _refusal("task_type", config["task_type"], "'CAUSAL_LM' or null")
    if config.get("bias", "none") != "none":
        raise _refusal("bias", config["bias"], "'none': trained biases can't be served")
    for field, reason in _REFUSED.items():
        if config.get(field):
            raise _refusal(field, config[field], f"it unset: {reason}")
    init = config.get("init_lora_weights")
    if not isinstance(init, bool | None) and str(init).lower() not in _HARMLESS_INITS:
        raise _refusal(
            "init_lora_weights",
            init,
            f"a boolean or one of {', '.join(_HARMLESS_INITS)}: others may change the base model's "
            "weights. Convert the adapter with save_pretrained's "
            "path_initial_model_for_weight_conversion",
        )


def _selection(config: Mapping[str, object]) -> Selection:
    targets = config["target_modules"]
    all_linear = isinstance(targets, str) and targets.lower() == ALL_LINEAR
    layers = config.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers or []
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise _refusal("layers_to_transform", layers, "layer numbers")
    patterns = config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list):
        raise _refusal("layers_pattern", patterns, "names")
    if isinstance(targets, str) and layers:
        raise _refusal("target_modules", targets, "a list beside layers_to_transform")
    if patterns and not layers:
        raise _refusal("layers_pattern", patterns, "layers_to_transform beside it")
    excluded = config.get("exclude_modules")
    return Selection(
        targets=None if all_linear else _names("target_modules", targets),
        excluded=_names("exclude_modules", excluded) if excluded else NO_NAMES,
        layers=frozenset(layers),
        layers_patterns=tuple(_expression("layers_pattern", pattern) for pattern in patterns),
    )


def _names(field: str, value: object) -> Names:
    if isinstance(value, str):
        return Names(expression=_expression(field, value))
    if isinstance(value, list) and value and all(isinstance(name, str) for name in value):
        return Names(endings=frozenset(value))
    raise _refusal(field, value, "a list of module names")


def _expression(field: str, value: object) -> str:
    if isinstance(value, str) and HARMLESS_KEY.fullmatch(value):
        return value
    raise _refusal(field, value, f"a list of names: in a string {KEY_RULE}")


def _pattern(config: Mapping[str, object], field: str) -> dict[str, object]:
    pattern = config.get(field) or {}
    if not isinstance(pattern, dict):
        raise _refusal(field, pattern, "an object of module names and numbers")
    if len(pattern) > MAX_KEYS:
        raise InvalidAdapterError(
            f"adapter_config.json's {field} has {len(pattern)} keys, at most {MAX_KEYS} are "
            "allowed.",
            param="config",
        )
    for key in pattern:
        if not HARMLESS_KEY.fullmatch(key):
            raise _refusal(f"key in {field}", key, f"a module's name: {KEY_RULE}")
    return pattern


def _positive_int(field: str, value: object) -> int:
    if type(value) is int and value > 0:
        return value
    raise _refusal(field, value, "a whole number above 0")


def _alpha(field: str, value: object) -> float:
    # Compared before it is made a float: a JSON integer may be too large for one.
    if type(value) is float or (type(value) is int and 0 < value <= MAX_LORA_ALPHA):
        number = float(value)
        if is_lora_alpha(number):
            return number
    raise _refusal(field, value, f"a number above 0, at most {MAX_LORA_ALPHA}")


def _flag(field: str, value: object) -> bool:
    if isinstance(value, bool | None):
        return bool(value)
    raise _refusal(field, value, "true or false")


def _refusal(field: str, found: object, expected: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"adapter_config.json's {field} is {quoted(found)}, expected {expected}.", param="config"
    )


def _warnings(config: Mapping[str, object]) -> tuple[str, ...]:
    unknown = sorted(
        field for field in config if config[field] and field not in _IGNORED | _REFUSED.keys()
    )
    if not unknown:
        return ()
    return (f"adapter_config.json has settings that are not known here: {listed(unknown)}.",)
