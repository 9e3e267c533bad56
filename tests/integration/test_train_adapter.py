"""scripts/train-adapter, run as a user runs it, on the real demo model."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
TRAIN_ADAPTER = ROOT / "scripts" / "train-adapter"
BASE_MODEL = ROOT / ".runtime" / "models" / "smollm2-135m-instruct"
QUESTIONS = ("What is a loan?", "What is a tax?", "What is a bank?", "What is a fee?")
LIMIT_S = 60


def example(question: str) -> str:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "A thing to ask the bank about."},
    ]
    return json.dumps({"messages": messages})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A training set of four lines."""
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(example(question) for question in QUESTIONS), encoding="utf-8")
    return path


def run(arguments: Sequence[str | Path], script: Path = TRAIN_ADAPTER) -> tuple[int, str]:
    """The exit status and what was written to stderr."""
    done = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        timeout=5 * LIMIT_S,
        check=False,
    )
    return done.returncode, done.stderr


def file_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_refused(result: tuple[int, str], *words: str) -> None:
    """Exit status 2 and, besides what it was doing, one line with the words."""
    status, stderr = result
    assert status == 2, stderr
    lines = [line for line in stderr.splitlines() if "loading" not in line]
    assert len(lines) == 1, stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.timeout(6 * LIMIT_S)
def test_four_examples_become_an_adapter_that_peft_loads_and_that_changes_the_model(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "results" / "adapter"
    status, stderr = run([data, "--out", out, "--epochs", "1", "--target-modules", "v_proj,q_proj"])

    assert status == 0, stderr
    assert file_names(out) == ["adapter_config.json", "adapter_model.safetensors"]
    assert file_names(tmp_path / "results") == ["adapter"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["target_modules"] == ["q_proj", "v_proj"]

    base = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    prompt = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.inference_mode():
        before = base(prompt).logits
        adapted = PeftModel.from_pretrained(base, str(out))(prompt).logits
    assert not torch.equal(before, adapted)


@pytest.mark.timeout(12 * LIMIT_S)
def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(
    data: Path, tmp_path: Path
) -> None:
    def train(name: str, seed: str) -> list[str]:
        out = tmp_path / name
        status, stderr = run([data, "--out", out, "--epochs", "1", "--seed", seed])
        assert status == 0, stderr
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.iterdir())]

    first = train("first", "7")
    assert train("again", "7") == first
    assert train("other", "8") != first


def test_only_the_assistants_tokens_are_learned(tmp_path: Path) -> None:
    """Two sets that differ in a user turn after the last answer give the same adapter."""
    sets = []
    for name, tail in (("plain", []), ("tail", [{"role": "user", "content": "Thanks a lot."}])):
        document = json.loads(example(QUESTIONS[0]))
        document["messages"] += tail
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(document), encoding="utf-8")
        status, stderr = run([path, "--out", tmp_path / name, "--epochs", "1"])
        assert status == 0, stderr
        sets.append(stderr.split("loss ")[1].split(",")[0])
    assert sets[0] == sets[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(None, ["can't be read", "No such file"], id="missing-file"),
        pytest.param("", ["no examples"], id="empty-file"),
        pytest.param("\xff", ["line 1", "not JSON"], id="not-json"),
        pytest.param(f"{example('Why?')}\n{{'a': 1}}\n", ["line 2", "not JSON"], id="second-line"),
        pytest.param("[1, 2]", ["line 1", '"messages"'], id="not-an-object"),
        pytest.param(
            '{"messages": [{"role": "user", "content": "Why?"}]}',
            ["line 1", "no assistant turn"],
            id="no-assistant",
        ),
        pytest.param(
            '{"messages": [{"role": "tool", "content": "Why?"}]}', ["line 1", "role"], id="role"
        ),
        pytest.param(
            '{"messages": [{"role": "assistant", "content": " "}]}',
            ["line 1", "without text"],
            id="blank",
        ),
    ],
)
def test_a_bad_training_set_is_refused_in_one_sentence_and_leaves_nothing(
    tmp_path: Path, content: str | None, words: list[str]
) -> None:
    data = tmp_path / "train.jsonl"
    if content is not None:
        data.write_text(content, encoding="utf-8")
    before = file_names(tmp_path)
    assert_refused(run([data, "--out", tmp_path / "adapter"]), *words)
    assert file_names(tmp_path) == before


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_bytes(b'{"messages": "\xff"}')
    assert_refused(run([data, "--out", tmp_path / "adapter"]), "not UTF-8")
    assert file_names(tmp_path) == ["train.jsonl"]


@pytest.mark.timeout(2 * LIMIT_S)
def test_an_unknown_target_module_is_refused_with_the_names_there_are(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "adapter"
    result = run([data, "--out", out, "--target-modules", "q_proj,w_proj"])
    assert_refused(result, "'w_proj'", "q_proj", "down_proj")
    assert file_names(tmp_path) == ["train.jsonl"]


def test_a_folder_that_holds_something_is_never_written_over(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "adapter"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert_refused(run([data, "--out", out]), "exists already")
    assert file_names(out) == ["notes.txt"]


def test_a_missing_base_model_is_refused(data: Path, tmp_path: Path) -> None:
    missing = tmp_path / "no-such-model"
    result = run([data, "--out", tmp_path / "adapter", "--base-model", missing])
    assert_refused(result, "no base model", "no-such-model")
    assert file_names(tmp_path) == ["train.jsonl"]


@pytest.mark.parametrize(
    "option", ["--rank=0", "--epochs=none", "--learning-rate=-1", "--target-modules=,"]
)
def test_an_option_without_sense_is_refused(data: Path, tmp_path: Path, option: str) -> None:
    status, stderr = run([data, "--out", tmp_path / "adapter", option])
    assert status == 2
    assert option.split("=", maxsplit=1)[0] in stderr
    assert file_names(tmp_path) == ["train.jsonl"]


def test_without_the_projects_environment_it_says_to_run_setup_and_help_still_works(
    data: Path, tmp_path: Path
) -> None:
    script = tmp_path / "elsewhere" / "scripts" / "train-adapter"
    script.parent.mkdir(parents=True)
    shutil.copy(TRAIN_ADAPTER, script)
    status, stderr = run([data, "--out", tmp_path / "adapter"], script)
    assert status == 1
    assert stderr.splitlines() == ["train-adapter: run scripts/setup first"]
    assert run(["--help"], script)[0] == 0


def test_it_can_be_executed() -> None:
    assert os.access(TRAIN_ADAPTER, os.X_OK)
