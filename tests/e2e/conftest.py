import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.hub_server import Hub, running_hub
from tests.stack_process import BASE_MODEL, ROOT, Stack, running_stack

MODEL_FOLDER = ROOT / ".runtime" / "models" / BASE_MODEL
SLOTS, KEPT, SEQUENCES, MAX_WAITING = 2, 3, 8, 40
"""Of the small installation."""
PeftAnswer = Callable[[str, Path | None, int], str]


@pytest.fixture(scope="session")
def hub() -> Iterator[Hub]:
    """The hub that the installation fetches adapters from."""
    with running_hub() as running:
        yield running


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Stack]:
    """One installation with explicit model control, for all tests."""
    folder = tmp_path_factory.mktemp("explicit")
    # A test stops the gateway while long answers run.
    settings = {"HF_ENDPOINT": hub.endpoint, "LORA_STOP_WITHIN_S": "20"}
    with running_stack(folder, settings=settings) as running:
        yield running


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An installation whose engine has few slots, keeps few adapters and does little at once."""
    folder = tmp_path_factory.mktemp("small")
    base = folder / "model_repository" / BASE_MODEL
    shutil.copytree(ROOT / "model_repository" / BASE_MODEL, base)
    file = base / "1" / "model.json"
    settings = json.loads(file.read_text()) | {
        "max_loras": SLOTS,
        "max_cpu_loras": KEPT,
        "max_num_seqs": SEQUENCES,
        "admission": {"max_waiting": MAX_WAITING, "max_running_shared": SEQUENCES},
    }
    file.write_text(json.dumps(settings))
    with running_stack(folder) as running:
        yield running


@pytest.fixture(scope="session")
def base_model() -> PreTrainedModel:
    """The base model in transformers, in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER, dtype=torch.float32)
    return model


@pytest.fixture(scope="session")
def random_adapters(
    base_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Four PEFT adapters on the base model, each of a rank of its own, that change its answers."""
    folder = tmp_path_factory.mktemp("adapters")
    return [
        make_random_adapter(base_model, folder / f"random{seed}", seed=seed, rank=rank)
        for seed, rank in enumerate((1, 4, 8, 16))
    ]


@pytest.fixture(scope="session")
def peft_answer(base_model: PreTrainedModel) -> PeftAnswer:
    """What transformers and PEFT themselves answer: greedy, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_FOLDER)

    @functools.cache
    def answer(question: str, adapter: Path | None, max_tokens: int) -> str:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        lora = PeftModel.from_pretrained(base_model, adapter) if adapter is not None else None
        with torch.no_grad():
            tokens = (lora or base_model).generate(
                **prompt, max_new_tokens=max_tokens, do_sample=False
            )
        if lora is not None:
            lora.unload()
        new = tokens[0, prompt["input_ids"].shape[1] :]
        text: str = tokenizer.decode(new, skip_special_tokens=True)
        return text

    return answer


def make_random_adapter(
    base_model: PreTrainedModel,
    folder: Path,
    *,
    seed: int,
    rank: int,
    lora_alpha: int | None = None,
) -> Path:
    """A PEFT adapter that changes the answers, saved in the folder, which comes back."""
    torch.manual_seed(seed)
    settings = LoraConfig(
        r=rank,
        lora_alpha=lora_alpha or 2 * rank,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj"],
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    )
    lora = get_peft_model(base_model, settings)
    for name, weights in lora.named_parameters():
        if "lora_" in name:
            weights.data *= 0.8
    lora.save_pretrained(folder)
    lora.unload()
    return folder
