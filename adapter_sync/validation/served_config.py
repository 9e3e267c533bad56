"""Writes the adapter_config.json that the engine reads, from vetted values only.

PEFT's PeftModel.from_pretrained loads it too, with the same result as the uploaded one.
"""

from collections.abc import Iterable, Sequence

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation.linear_layers import modules_with_weights
from adapter_sync.validation.modules import LoraModule, last_part
from adapter_sync.validation.patterns import shortest_pattern
from adapter_sync.validation.scaling import Scaling

# vLLM 0.32 tries every key on every module as a regular expression, inside the engine's loop: on
# 560 modules that took 0.5 s with 64 keys and 26 s with 560, while no stream moved.
MAX_SERVED_KEYS = 64


def served_config(
    modules: Sequence[LoraModule], scaling: Scaling, base: BaseModel
) -> dict[str, object]:
    """The config's contents.

    Raises:
        InvalidAdapterError: ranks and alphas are too irregular to be written down.

    """
    ranks = {module.name: module.rank for module in modules}
    alphas = {name: _as_json(alpha) for name, alpha in scaling.alphas.items()}
    lora_alpha = _as_json(scaling.lora_alpha)
    rank_pattern = shortest_pattern(ranks, default=scaling.r)
    alpha_pattern = shortest_pattern(alphas, default=lora_alpha)
    keys = len(rank_pattern) + len(alpha_pattern)
    if keys > MAX_SERVED_KEYS:
        raise InvalidAdapterError(
            f"The modules' ranks and alphas differ from r {scaling.r} and lora_alpha {lora_alpha} "
            f"in {keys} places, at most {MAX_SERVED_KEYS} are served: use one rank for all layers "
            "of a kind."
        )
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "inference_mode": True,
        "bias": "none",
        "r": scaling.r,
        "lora_alpha": lora_alpha,
        "use_rslora": scaling.use_rslora,
        "target_modules": _target_modules(ranks, base),
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }


def _target_modules(names: Iterable[str], base: BaseModel) -> list[str]:
    """The last parts of the names where they select exactly these modules, else whole names."""
    wanted = set(names)
    leaves = {last_part(name) for name in wanted}
    selected = {
        module for module in modules_with_weights(base.tensor_shapes) if last_part(module) in leaves
    }
    return sorted(leaves if selected == wanted else wanted)


def _as_json(alpha: float) -> float:
    """PEFT writes whole alphas as integers, and so does this."""
    return int(alpha) if alpha == int(alpha) else alpha
