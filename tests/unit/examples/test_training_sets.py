"""The example training sets, their evaluation questions and the adapters made from them."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
FIELDS = ("finance", "healthcare", "legal")
MAX_ADAPTER_BYTES = 2_000_000
SHAPES = {
    "finance": r"In short: .+\nWhy it matters: .+\nThis is information, not investment advice\.",
    "healthcare": r"Key point: .+\n- Do: .+\n- Avoid: .+\n- See a doctor if: .+\n"
    r"In an emergency, call your local emergency number\.",
    "legal": r"Rule: .+\nWatch out: .+\nNext step: .+\n"
    r"General information only; ask a lawyer about your own case\.",
}


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def conversations(field: str) -> list[list[dict[str, str]]]:
    return [entry["messages"] for entry in read_jsonl(EXAMPLES / field / "train.jsonl")]


def questions(field: str) -> list[str]:
    return [entry["question"] for entry in read_jsonl(EXAMPLES / field / "questions.jsonl")]


def normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def asked(field: str) -> list[str]:
    return [normalised(messages[-2]["content"]) for messages in conversations(field)]


@pytest.mark.parametrize("field", FIELDS)
def test_every_example_is_one_question_and_one_answer_with_an_optional_system_message(
    field: str,
) -> None:
    for messages in conversations(field):
        assert all(set(message) == {"role", "content"} for message in messages)
        roles = [message["role"] for message in messages]
        assert roles in (["user", "assistant"], ["system", "user", "assistant"])
        assert all(message["content"] == message["content"].strip() for message in messages)


@pytest.mark.parametrize("field", FIELDS)
def test_a_set_has_sixty_to_a_hundred_and_twenty_examples(field: str) -> None:
    assert 60 <= len(conversations(field)) <= 120


@pytest.mark.parametrize("field", FIELDS)
def test_every_answer_has_the_form_of_its_field_and_30_to_70_words(field: str) -> None:
    for messages in conversations(field):
        answer = messages[-1]["content"]
        assert re.fullmatch(SHAPES[field], answer), answer
        assert 30 <= len(answer.split()) <= 70, answer


def test_no_question_is_there_twice() -> None:
    everything = [question for field in FIELDS for question in asked(field)]
    assert sorted(set(everything)) == sorted(everything)


def test_no_answer_is_there_twice() -> None:
    answers = [messages[-1]["content"] for field in FIELDS for messages in conversations(field)]
    assert sorted(set(answers)) == sorted(answers)


@pytest.mark.parametrize("field", FIELDS)
def test_the_three_evaluation_questions_are_not_in_any_training_set(field: str) -> None:
    evaluation = questions(field)
    assert len(set(evaluation)) == 3
    trained_on = {question for other in FIELDS for question in asked(other)}
    assert trained_on.isdisjoint(normalised(question) for question in evaluation)


@pytest.mark.parametrize("field", FIELDS)
def test_an_adapter_is_exactly_its_two_files_of_at_most_two_megabytes(field: str) -> None:
    files = sorted((EXAMPLES / field / "adapter").iterdir())
    assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert sum(file.stat().st_size for file in files) <= MAX_ADAPTER_BYTES


@pytest.mark.parametrize("field", FIELDS)
def test_an_adapter_names_its_base_model_and_no_place_on_a_machine(field: str) -> None:
    config = json.loads((EXAMPLES / field / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert config["peft_type"] == "LORA"
    assert config["r"] in (8, 16)


@pytest.mark.parametrize("field", FIELDS)
def test_an_adapter_has_a_pair_of_matrices_of_its_rank_for_each_module_it_names(field: str) -> None:
    folder = EXAMPLES / field / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    header, _ = safetensors_parts(folder / "adapter_model.safetensors")
    assert {name.rsplit(".", 3)[1] for name in header} == set(config["target_modules"])
    sides: dict[str, set[str]] = {}
    for name, tensor in header.items():
        module, side, _ = name.rsplit(".", 2)
        sides.setdefault(module, set()).add(side)
        assert tensor["shape"][0 if side == "lora_A" else 1] == config["r"], name
    assert all(pair == {"lora_A", "lora_B"} for pair in sides.values())


@pytest.mark.parametrize("field", FIELDS)
def test_an_adapter_has_been_trained(field: str) -> None:
    header, data = safetensors_parts(EXAMPLES / field / "adapter" / "adapter_model.safetensors")
    for name, tensor in header.items():
        start, end = tensor["data_offsets"]
        assert any(data[start:end]), f"{name} is all zeros, as lora_B is before training"


def safetensors_parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """The header (its length in 8 bytes, little-endian, then JSON) without metadata, the data."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, content[8 + length :]
