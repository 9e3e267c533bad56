"""From an adapter's tensors to the modules they change, each checked against the base model."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.validation.linear_layers import (
    layer_number,
    linear_layers,
    modules_with_weights,
)
from adapter_sync.validation.safetensors_file import StoredTensor
from adapter_sync.validation.words import listed, quoted

_NAME = re.compile(r"base_model\.model\.([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.lora_([AB])\.weight")
_NAME_RULE = (
    "expected names like 'base_model.model.<module>.lora_A.weight' and "
    "'base_model.model.<module>.lora_B.weight', as PEFT's save_pretrained writes them"
)
# The first pattern found in a name says what kind of tensor it is.
_OTHER_KINDS: Mapping[str, str] = {
    r"lora_magnitude_vector": "it belongs to a DoRA adapter, which vLLM can't serve",
    r"\.lora_[AB](\.[^.]+)?\.bias$": "it is a LoRA bias (lora_bias), which vLLM can't serve",
    r"\.lora_embedding_[AB]": "LoRA on embeddings is not served",
    r"\.base_layer\.": (
        "it is a weight of the base model, which PEFT saves when embeddings or the output layer "
        "have LoRA, and these are not served"
    ),
    r"\.modules_to_save\.": "whole modules (modules_to_save) are not served",
    r"\.lora_[AB]\.[^.]+\.weight$": "it has PEFT's adapter name in it",
    r"lora_(down|up)\.": "it is in another tool's format",
    r"^(?!base_model\.model\.).*\.lora_[AB]\.weight$": "it lacks the prefix 'base_model.model.'",
}
_EXPERTS = ".experts."


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraModule:
    """A linear layer of the base model that the adapter changes."""

    name: str
    rank: int

    @property
    def leaf(self) -> str:
        """The last part of the name ("q_proj")."""
        return last_part(self.name)


def last_part(module: str) -> str:
    """The last part of a module's name: "q_proj" of "model.layers.0.self_attn.q_proj"."""
    return module.rpartition(".")[2]


def read_modules(tensors: Iterable[StoredTensor], base: BaseModel) -> tuple[LoraModule, ...]:
    """The modules the tensors change, sorted by name.

    Raises:
        InvalidAdapterError: a tensor's name, shape or rank is not one that vLLM serves on this
            base model, lora_A and lora_B don't come in pairs, or there are no tensors.

    """
    linear = linear_layers(base.tensor_shapes)
    pairs: dict[str, dict[str, StoredTensor]] = defaultdict(dict)
    for tensor in tensors:
        module, side = _module_and_side(tensor.name)
        _check_module(tensor, module, linear, base)
        _check_shape(tensor, module, side, linear[module])
        pairs[module][side] = tensor
    if not pairs:
        raise InvalidAdapterError(f"The file holds no tensors; {_NAME_RULE}.")
    modules = tuple(
        LoraModule(name=module, rank=_rank(module, pair, base))
        for module, pair in sorted(pairs.items())
    )
    _check_experts(modules, linear)
    return modules


def _module_and_side(name: str) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    if match is not None:
        return match[1], match[2]
    kinds = (kind for pattern, kind in _OTHER_KINDS.items() if re.search(pattern, name))
    kind = next(kinds, "it is not a LoRA weight")
    raise InvalidAdapterError(f"The tensor {quoted(name)} can't be served: {kind}; {_NAME_RULE}.")


def _check_module(
    tensor: StoredTensor, module: str, linear: Mapping[str, tuple[int, int]], base: BaseModel
) -> None:
    if module in linear:
        return
    where = f"The tensor {quoted(tensor.name)} would silently do nothing"
    weights = modules_with_weights(base.tensor_shapes)
    if module in weights:
        raise InvalidAdapterError(
            f"{where}: on the base model '{base.name}' LoRA is served on the linear layers of its "
            f"blocks only, and {quoted(module)} (weight {weights[module]}) is not one of them."
        )
    raise InvalidAdapterError(
        f"{where}: the base model '{base.name}' has no module {quoted(module)}; "
        f"{_nearest(module, linear)}."
    )


def _nearest(module: str, linear: Mapping[str, tuple[int, int]]) -> str:
    """What the base model has instead: the range of its layers, or a module's whole name."""
    prefix, number = _block_and_layer(module)
    layers = {
        int(other)
        for name in linear
        for start, other in [_block_and_layer(name)]
        if start == prefix
    }
    if layers and int(number) not in layers:
        return f"its layers are {min(layers)} to {max(layers)}"
    same_leaf = (name for name in linear if last_part(name) == last_part(module))
    example = next(same_leaf, None) or next(iter(linear), None)
    return f"expected one like {quoted(example)}" if example else "it has no linear layers"


def _block_and_layer(module: str) -> tuple[str, str]:
    """The name up to its first number, and the number: ("model.layers", "0")."""
    parts = module.split(".")
    for index, part in enumerate(parts):
        if layer_number(part):
            return ".".join(parts[:index]), part
    return module, ""


def _check_shape(tensor: StoredTensor, module: str, side: str, features: tuple[int, int]) -> None:
    out_features, in_features = features
    expected = f"(rank, {in_features})" if side == "A" else f"({out_features}, rank)"
    fits = (
        len(tensor.shape) == len(features)
        and min(tensor.shape) > 0
        and (tensor.shape[1] == in_features if side == "A" else tensor.shape[0] == out_features)
    )
    if not fits:
        raise InvalidAdapterError(
            f"The tensor {quoted(tensor.name)} has shape {tensor.shape}, expected {expected}: "
            f"{quoted(module)} of the base model takes {in_features} features and gives "
            f"{out_features}."
        )


def _rank(module: str, pair: Mapping[str, StoredTensor], base: BaseModel) -> int:
    if len(pair) == 1:
        [(side, tensor)] = pair.items()
        other = "B" if side == "A" else "A"
        raise InvalidAdapterError(
            f"The tensor {quoted(tensor.name)} is alone, expected lora_{other}.weight of "
            f"{quoted(module)} beside it."
        )
    lora_a, lora_b = pair["A"], pair["B"]
    rank = lora_a.shape[0]
    if lora_b.shape[1] != rank:
        raise InvalidAdapterError(
            f"The tensor {quoted(lora_b.name)} has shape {lora_b.shape}, expected rank {rank} in "
            f"its second place: {quoted(lora_a.name)} has shape {lora_a.shape}."
        )
    if rank > base.max_lora_rank:
        raise InvalidAdapterError(
            f"The tensor {quoted(lora_a.name)} has rank {rank} (shape {lora_a.shape}), at most "
            f"{base.max_lora_rank} is served on the base model '{base.name}'."
        )
    return rank


def _check_experts(modules: Iterable[LoraModule], linear: Iterable[str]) -> None:
    """A block's experts, which vLLM packs: all or none, and one rank for each projection."""
    ranks = {module.name: module.rank for module in modules if _EXPERTS in module.name}
    blocks = {name.split(_EXPERTS)[0] for name in ranks}
    missing = [name for name in linear if name.split(_EXPERTS)[0] in blocks and name not in ranks]
    if missing:
        raise InvalidAdapterError(
            f"The file has LoRA for some experts of a block only: nothing for {listed(missing)}; "
            "expected all experts of a block or none."
        )
    by_projection: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name, rank in ranks.items():
        by_projection[name.split(_EXPERTS)[0], last_part(name)].add(rank)
    for (block, projection), found in by_projection.items():
        if len(found) > 1:
            raise InvalidAdapterError(
                f"The experts' {quoted(projection)} in {quoted(block)} have the ranks "
                f"{sorted(found)}, expected one rank for all experts."
            )
