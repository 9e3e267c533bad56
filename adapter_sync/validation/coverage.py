"""Compares the modules that a config selects with the modules that the file has tensors for."""

from collections.abc import Sequence

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation.linear_layers import linear_layers, modules_with_weights
from adapter_sync.validation.modules import LoraModule
from adapter_sync.validation.selection import Selection, endings_of
from adapter_sync.validation.words import listed, quoted


def check_coverage(
    modules: Sequence[LoraModule], selection: Selection, base: BaseModel
) -> tuple[str, ...]:
    """Warnings about selected modules that stay as they are in the base model.

    Raises:
        InvalidAdapterError: a tensor that the config doesn't select, or a part of the selection
            that the file has no tensor for.

    """
    names = [module.name for module in modules]
    _check_selected(names, selection)
    _check_layers(names, selection)
    unknown = _check_targets(names, selection, base)
    warnings = []
    if unknown:
        warnings.append(
            f"adapter_config.json's target_modules has names that the base model '{base.name}' "
            f"doesn't know: {listed(unknown)}."
        )
    present = set(names)
    missing = [
        module
        for module in linear_layers(base.tensor_shapes)
        if module not in present and selection.selects(module)
    ]
    if missing:
        warnings.append(
            f"adapter_config.json selects {len(missing)} modules of the base model "
            f"'{base.name}' that the file has no tensors for, so they stay as they are: "
            f"{listed(missing)}."
        )
    return tuple(warnings)


def _check_selected(names: Sequence[str], selection: Selection) -> None:
    for name in names:
        if not selection.selects(name):
            raise InvalidAdapterError(
                f"The file has tensors of {quoted(name)}, which adapter_config.json does not "
                f"select: expected modules that its target_modules"
                f"{_conditions(selection)} names."
            )


def _conditions(selection: Selection) -> str:
    layers = f" with layers_to_transform {quoted(sorted(selection.layers))}"
    return layers if selection.layers else ""


def _check_layers(names: Sequence[str], selection: Selection) -> None:
    missing = selection.layers - {selection.layer_of(name) for name in names}
    if missing:
        raise InvalidAdapterError(
            f"adapter_config.json's layers_to_transform names the layers "
            f"{quoted(sorted(missing))}, expected only layers that the file has tensors for.",
            param="config",
        )


def _check_targets(names: Sequence[str], selection: Selection, base: BaseModel) -> list[str]:
    """The targets that the base model doesn't know; PEFT leaves them out without a word too."""
    if selection.targets is None:
        return []
    modules = list(modules_with_weights(base.tensor_shapes))
    unused = selection.targets.endings - endings_of(names)
    missing = unused & endings_of(
        module for module in modules if not selection.excluded.match(module)
    )
    if missing:
        raise InvalidAdapterError(
            f"The file has no tensors for {listed(sorted(missing))} in adapter_config.json's "
            "target_modules, expected lora_A.weight and lora_B.weight for each: it is incomplete."
        )
    return sorted(unused - endings_of(modules))
