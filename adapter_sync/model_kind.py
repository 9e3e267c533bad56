"""Whether a model makes embeddings or scores instead of text: told by its own files.

vLLM's rule, as far as it can be told without its list of architectures: `_get_default_runner_type`
in vllm/config/model.py. Standard library only.
"""

from collections.abc import Mapping, Sequence

CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
"""Of a sentence-transformers model: the layers around the transformer."""
_POOLING_MODULE = "Pooling"
_GENERATES = ("ForCausalLM", "ForConditionalGeneration", "ChatModel", "LMHeadModel")
_POOLS = ("ForTextEncoding", "Classification", "ForRewardModeling", "Model")


def makes_embeddings(config: Mapping[str, object], modules: Sequence[object] = ()) -> bool:
    """Whether vLLM would take it for a pooling model.

    `config` is its config.json, `modules` its modules.json.
    """
    if any(_is_pooling(module) for module in modules):
        return True
    architectures = config.get("architectures")
    names = map(str, architectures) if isinstance(architectures, list) else ()
    known = (name for name in names if name.endswith(_GENERATES + _POOLS))
    return not next(known, _GENERATES[0]).endswith(_GENERATES)


def _is_pooling(module: object) -> bool:
    kind = module.get("type") if isinstance(module, dict) else None
    return isinstance(kind, str) and kind.rpartition(".")[2] == _POOLING_MODULE
