"""Where in the engine adapters are: more of them than it has slots, and than it keeps in memory."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter_sync.record import NodeBaseModel
from tests.e2e.conftest import KEPT, SLOTS
from tests.stack_process import BASE_MODEL, Stack, example, upload, wait_for

MOVE_DEADLINE_S = 120


@pytest.fixture(scope="module")
def api(small: Stack) -> Iterator[httpx.Client]:
    with small.api(small.new_key("residents")) as client:
        yield client


@pytest.fixture(scope="module")
def adapters(api: httpx.Client) -> list[dict[str, Any]]:
    """One more than the engine keeps in memory, uploaded one after the other."""
    return [upload(api, f"a{number}", example("finance")).json() for number in range(KEPT + 1)]


def residencies(api: httpx.Client, adapters: list[dict[str, Any]]) -> list[str]:
    return [api.get(f"/v1/adapters/{each['id']}").json()["residency"] for each in adapters]


def await_residencies(
    api: httpx.Client, adapters: list[dict[str, Any]], expected: list[str]
) -> None:
    found: list[list[str]] = []

    def is_there() -> bool:
        found.append(residencies(api, adapters))
        return found[-1] == expected

    try:
        wait_for(is_there, f"{expected}", deadline_s=MOVE_DEADLINE_S)
    except AssertionError:
        raise AssertionError(f"{found[-1]} is not {expected}") from None


def ask(api: httpx.Client, model: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "What is a bond?"}],
        "max_tokens": 8,
        "temperature": 0,
    }
    answer = api.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_adapters_move_between_the_slots_the_memory_and_the_disk_as_they_are_used(
    api: httpx.Client, adapters: list[dict[str, Any]]
) -> None:
    await_residencies(api, adapters, ["disk", "cpu", "gpu", "gpu"])
    answer = ask(api, adapters[3]["model"])
    # The one that was evicted is read again, and the one used least recently makes room.
    assert ask(api, adapters[0]["model"]) == answer
    await_residencies(api, adapters, ["gpu", "disk", "cpu", "gpu"])
    assert ask(api, adapters[2]["model"]) == answer
    await_residencies(api, adapters, ["gpu", "disk", "gpu", "cpu"])


def test_the_base_model_answers_alike_beside_adapters_in_all_slots(
    api: httpx.Client, random_adapters: list[Path]
) -> None:
    names = [f"random{number}" for number in range(SLOTS)]
    made = [
        upload(api, *each, wait_s=120).json()
        for each in zip(names, random_adapters[-SLOTS:], strict=True)
    ]
    models = [each["model"] for each in made]
    alone = {model: ask(api, model) for model in (BASE_MODEL, *models)}
    assert len(set(alone.values())) == len(alone)
    asked = [*alone] * 3
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(partial(ask, api), asked))
    assert together == [alone[model] for model in asked]
    for adapter in made:
        api.delete(f"/v1/adapters/{adapter['id']}")


def test_a_deleted_adapter_leaves_the_slots_and_the_memory(
    small: Stack, api: httpx.Client, adapters: list[dict[str, Any]]
) -> None:
    for adapter in adapters:
        ask(api, adapter["model"])
        assert api.delete(f"/v1/adapters/{adapter['id']}").json()["deleted"] is True

    def is_free() -> bool:
        status = small.engine()
        return status is not None and not status.adapters and status.held == 0

    wait_for(is_free, "the engine without adapters")


def test_the_node_tells_the_engine_s_slots_and_the_map_that_it_has(small: Stack) -> None:
    with closing(small.registry()) as registry:

        def base_model() -> NodeBaseModel | None:
            """As the node tells it, once it has told of the newest map."""
            [node] = registry.nodes()
            [base] = node.base_models
            engine = small.engine()
            is_told = engine is not None and base.lora_map_revision == engine.revision
            return base if is_told else None

        base = wait_for(base_model, "the node's word of the newest map")
    assert (base.name, base.max_loras, base.max_lora_rank) == (BASE_MODEL, SLOTS, 16)
