"""Which models make embeddings or scores: told as vLLM tells it."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from adapter_sync.model_kind import CONFIG_FILE, MODULES_FILE, makes_embeddings

MODELS = Path(__file__).parents[3] / ".runtime" / "models"
POOLING = {
    "idx": 1,
    "name": "1",
    "path": "1_Pooling",
    "type": "sentence_transformers.models.Pooling",
}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


@pytest.mark.parametrize(
    ("architecture", "pools"),
    [
        ("LlamaForCausalLM", False),
        ("Qwen2VLForConditionalGeneration", False),
        ("QWenLMHeadModel", False),
        ("ChatGLMModel", True),
        ("InternVLChatModel", False),
        ("BertModel", True),
        ("BertForSequenceClassification", True),
        ("InternLM2ForRewardModel", True),
        ("SomethingElse", False),
    ],
)
def test_the_architecture_tells(architecture: str, *, pools: bool) -> None:
    assert makes_embeddings({"architectures": [architecture]}) is pools


def test_the_first_architecture_that_is_known_tells() -> None:
    assert makes_embeddings({"architectures": ["Odd", "BertModel", "LlamaForCausalLM"]})
    assert not makes_embeddings({"architectures": ["Odd", "LlamaForCausalLM", "BertModel"]})


def test_a_pooling_layer_makes_embeddings_of_any_architecture() -> None:
    causal = {"architectures": ["Qwen3ForCausalLM"]}
    assert makes_embeddings(causal, [POOLING])
    assert not makes_embeddings(causal, [DENSE])


@pytest.mark.parametrize("config", [{}, {"architectures": None}, {"architectures": []}])
def test_a_config_that_tells_nothing_is_a_text_models(config: dict[str, object]) -> None:
    assert not makes_embeddings(config, [None, {"type": 5}, "Pooling"])


@pytest.mark.parametrize(
    ("name", "pools"), [("all-minilm-l6-v2", True), ("smollm2-135m-instruct", False)]
)
def test_the_real_models_are_told_apart(name: str, *, pools: bool) -> None:
    config = json.loads((MODELS / name / CONFIG_FILE).read_text())
    modules = MODELS / name / MODULES_FILE
    parsed = json.loads(modules.read_text()) if modules.exists() else []
    assert makes_embeddings(config, parsed) is pools
    assert makes_embeddings(config) is pools


def test_vllm_still_tells_by_these_endings() -> None:
    """Read from vLLM's file, since importing it takes a quarter of a minute."""
    vllm = find_spec("vllm")
    assert vllm is not None
    source = (Path(str(vllm.origin)).parent / "config" / "model.py").read_text()
    _, _, rest = source.partition("_SUFFIX_TO_DEFAULTS: ")
    table, _, _ = rest.partition("\n]\n")
    rows = [line.strip() for line in table.splitlines() if line.strip().startswith('("')]
    assert len(rows) > 10
    for row in rows:
        suffix, runner = row.split('"')[1], row.split('"')[3]
        assert makes_embeddings({"architectures": [f"X{suffix}"]}) is (runner == "pooling"), suffix
