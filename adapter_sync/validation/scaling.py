"""An adapter's ranks and alphas: from its config, or guessed from its tensors without one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation.config import MAX_LORA_ALPHA, AdapterConfig, is_lora_alpha
from adapter_sync.validation.modules import LoraModule
from adapter_sync.validation.patterns import Pattern
from adapter_sync.validation.words import quoted

# PEFT writes none of them; trainers that make a single file do.
_ALPHA_KEYS = ("lora_alpha", "ss_network_alpha", "network_alpha")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The rank and alpha that count where no pattern says otherwise, and each module's alpha.

    A module's update is multiplied by alpha / rank, with `use_rslora` by alpha / sqrt(rank).
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    alphas: Mapping[str, float]


def scaling_of_config(
    config: AdapterConfig, modules: Sequence[LoraModule], base: BaseModel
) -> Scaling:
    """The config's scaling. Raises InvalidAdapterError when its ranks are not the tensors'."""
    if config.r > base.max_lora_rank:
        raise InvalidAdapterError(
            f"adapter_config.json's r is {config.r}, at most {base.max_lora_rank} is served on the "
            f"base model '{base.name}'.",
            param="config",
        )
    ranks = Pattern(config.rank_pattern, default=config.r)
    for module in modules:
        expected = ranks.of(module.name)
        if module.rank != expected:
            raise InvalidAdapterError(
                f"The tensors of {quoted(module.name)} have rank {module.rank}, expected "
                f"{expected} as adapter_config.json says (r {config.r}, rank_pattern "
                f"{quoted(dict(config.rank_pattern))})."
            )
    alphas = Pattern(config.alpha_pattern, default=config.lora_alpha)
    return Scaling(
        r=config.r,
        lora_alpha=config.lora_alpha,
        use_rslora=config.use_rslora,
        alphas={module.name: alphas.of(module.name) for module in modules},
    )


def scaling_without_config(
    modules: Sequence[LoraModule], *, lora_alpha: float | None, metadata: Mapping[str, str]
) -> tuple[Scaling, tuple[str, ...]]:
    """The scaling of a file that came without a config, and what had to be assumed.

    `modules` has at least one; `lora_alpha` is the upload's form field.
    """
    counts = Counter(module.rank for module in modules)
    r = max(counts, key=lambda rank: (counts[rank], rank))
    known = lora_alpha if lora_alpha is not None else _alpha_in(metadata)
    warnings = () if known is not None else (_assumption(counts),)
    scaling = Scaling(
        r=r,
        lora_alpha=float(r) if known is None else known,
        use_rslora=False,
        alphas={module.name: float(module.rank) if known is None else known for module in modules},
    )
    return scaling, warnings


def check_lora_alpha(lora_alpha: float, config: AdapterConfig | None) -> None:
    """Raises InvalidAdapterError for a form field that is no alpha or contradicts the config."""
    if not is_lora_alpha(lora_alpha):
        raise InvalidAdapterError(
            f"lora_alpha is {quoted(lora_alpha)}, expected a number above 0, at most "
            f"{MAX_LORA_ALPHA}.",
            param="lora_alpha",
        )
    if config is not None and config.lora_alpha != lora_alpha:
        raise InvalidAdapterError(
            f"lora_alpha is {lora_alpha:g}, but adapter_config.json says {config.lora_alpha:g}: "
            "leave the field out or make them the same.",
            param="lora_alpha",
        )


def _assumption(ranks: Mapping[int, int]) -> str:
    found = " or ".join(map(str, sorted(ranks)))
    return (
        f"There is no adapter_config.json and no lora_alpha: it is assumed equal to the rank "
        f"({found}). Send lora_alpha if the adapter was trained with another."
    )


def _alpha_in(metadata: Mapping[str, str]) -> float | None:
    for key in _ALPHA_KEYS:
        try:
            value = float(metadata.get(key, ""))
        except ValueError:
            continue
        if is_lora_alpha(value):
            return value
    return None
