"""A seeded request's answer depends on its seed alone, not on the steps that read its prompt."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.engine.running import ADAPTERS, GENERATION, SMALL, Asked, ask, running_engine

PROMPT = "one two three four five six seven eight nine ten " * 8
STEPS = {"several steps": 32, "one step": 256}
QUESTIONS: list[dict[str, Any]] = [
    {"seed": 1, "temperature": 1},
    {"seed": 1, "temperature": 1.5, "top_p": 0.9, "logprobs": 2},
    {"seed": 7, "temperature": 1, "n": 2},
]


@pytest.mark.timeout(1200)
async def test_it_is_the_same_whether_a_prompt_is_read_in_one_step_or_in_several(
    tmp_path: Path,
) -> None:
    answers = {}
    for name, step_tokens in STEPS.items():
        settings = {**SMALL, "max_num_batched_tokens": step_tokens}
        async with running_engine(tmp_path / name.split()[0], GENERATION, settings) as engine:
            answers[name] = [
                [
                    await texts(engine, lora_name, question)
                    for lora_name in (None, *ADAPTERS.values())
                    for question in QUESTIONS
                ]
                for _ in range(2)
            ]
            assert engine.status()["alive"]
    once, again = answers["several steps"]
    assert once == again
    assert answers["one step"] == answers["several steps"]


async def texts(engine: Any, lora_name: str | None, question: dict[str, Any]) -> list[str]:
    body = {"model": "asked", "prompt": PROMPT, "max_tokens": 8, **question}
    asked = Asked(endpoint="completions", body=body, lora_name=lora_name)
    answer = await ask(engine, asked, f"{lora_name}-{question}")
    assert answer.status == 200, answer.body
    return [choice["text"] for choice in json.loads(answer.body)["choices"]]
