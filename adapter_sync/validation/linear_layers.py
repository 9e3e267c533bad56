"""Which modules of a base model vLLM puts LoRA on, from the names and shapes of its weights."""

from collections.abc import Mapping

_WEIGHT = ".weight"
_LINEAR_DIMENSIONS = 2
# vLLM leaves the towers of multimodal models and the extra layers for multi-token prediction
# alone, without a word.
_PARTS_WITHOUT_LORA = frozenset(
    {
        "audio_model",
        "audio_tower",
        "mm_projector",
        "mtp",
        "multi_modal_projector",
        "vision_encoder",
        "vision_model",
        "vision_tower",
        "visual",
    }
)


def modules_with_weights(
    tensor_shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, tuple[int, ...]]:
    """Each module that has a weight of its own, with the weight's shape."""
    return {
        name.removesuffix(_WEIGHT): shape
        for name, shape in tensor_shapes.items()
        if name.endswith(_WEIGHT)
    }


def linear_layers(tensor_shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, int]]:
    """Each module that can have LoRA, with (out_features, in_features).

    Only linear layers inside the numbered blocks count: embeddings and the output layer take LoRA
    in some of vLLM's architectures and not in others, which the weights don't tell.
    """
    return {
        module: (shape[0], shape[1])
        for module, shape in modules_with_weights(tensor_shapes).items()
        if len(shape) == _LINEAR_DIMENSIONS and _in_a_block(module)
    }


def layer_number(part: str) -> bool:
    """Whether a part of a module's name numbers a layer or an expert."""
    return part.isdecimal()


def _in_a_block(module: str) -> bool:
    parts = module.split(".")
    return any(map(layer_number, parts)) and _PARTS_WITHOUT_LORA.isdisjoint(parts)
