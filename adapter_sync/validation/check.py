"""The whole check, from the two uploaded files to the facts that are kept about the adapter."""

from pathlib import Path, PurePath

from adapter_sync.record import BaseModel
from adapter_sync.validation.config import AdapterConfig, parse_config
from adapter_sync.validation.coverage import check_coverage
from adapter_sync.validation.facts import AdapterFacts
from adapter_sync.validation.finite import check_finite
from adapter_sync.validation.modules import read_modules
from adapter_sync.validation.safetensors_file import read_safetensors
from adapter_sync.validation.scaling import (
    check_lora_alpha,
    scaling_of_config,
    scaling_without_config,
)
from adapter_sync.validation.served_config import served_config
from adapter_sync.validation.words import quoted


def check_adapter(
    weights: Path, *, config: bytes | None, lora_alpha: float | None, base: BaseModel
) -> AdapterFacts:
    """Check an upload against its base model.

    Args:
        weights: the adapter_model.safetensors, which nobody may change meanwhile.
        config: the adapter_config.json, None when only the weights were sent.
        lora_alpha: the sender's word on it, for a file without a config.
        base: the base model, with its tensors' shapes.

    Raises:
        InvalidAdapterError: the base model can't serve it; the message names the tensor or
            setting, what was found and what was expected.

    """
    settings = None if config is None else parse_config(config)
    if lora_alpha is not None:
        check_lora_alpha(lora_alpha, settings)
    file = read_safetensors(weights)
    modules = read_modules(file.tensors, base)
    if settings is None:
        scaling, warnings = scaling_without_config(
            modules, lora_alpha=lora_alpha, metadata=file.metadata
        )
    else:
        scaling = scaling_of_config(settings, modules, base)
        warnings = (
            *settings.warnings,
            *_other_base(settings, base),
            *check_coverage(modules, settings.selection, base),
        )
    served = served_config(modules, scaling, base)
    check_finite(file)
    return AdapterFacts(
        rank=max(module.rank for module in modules),
        lora_alpha=scaling.lora_alpha,
        target_modules=tuple(sorted({module.leaf for module in modules})),
        config=served,
        warnings=warnings,
    )


def _other_base(settings: AdapterConfig, base: BaseModel) -> tuple[str, ...]:
    """A warning only: the name is often a path on the machine where the adapter was trained."""
    trained_on = settings.base_model_name_or_path
    if not trained_on or PurePath(trained_on).name.lower() == base.name.lower():
        return ()
    warning = (
        f"adapter_config.json's base_model_name_or_path is {quoted(trained_on)}: make sure that "
        f"it is the base model '{base.name}'."
    )
    return (warning,)
