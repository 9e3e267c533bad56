"""The main job: adapters uploaded over HTTP answer at once, beside everything that runs."""

import threading
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import PeftAnswer
from tests.stack_process import (
    BASE_MODEL,
    EXAMPLES,
    Stack,
    example,
    upload,
    wait_for,
)

QUESTION = "What is compound interest?"


def ask(stack: Stack, key: str, model: str, *, max_tokens: int = 24) -> str:
    completion = stack.openai(key).chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=max_tokens,
        temperature=0,
    )
    return completion.choices[0].message.content or ""


def stream(stack: Stack, key: str, model: str, *, max_tokens: int = 24) -> str:
    chunks = stack.openai(key).chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
    )
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    return stack.new_key("hot-load")


@pytest.fixture(scope="module")
def examples(stack: Stack, key: str) -> dict[str, str]:
    """The example adapters, uploaded: what to put into `model`, by name."""
    with stack.api(key) as api:
        return {name: upload(api, name, example(name)).json()["model"] for name in EXAMPLES}


def test_the_base_and_each_adapter_answer_streamed_and_whole_alike(
    stack: Stack, key: str, examples: dict[str, str]
) -> None:
    answers = {}
    for model in [BASE_MODEL, *examples.values()]:
        answers[model] = ask(stack, key, model)
        assert stream(stack, key, model) == answers[model]
    assert len(set(answers.values())) == len(answers)


@pytest.mark.parametrize("index", range(4))
def test_a_greedy_answer_equals_pefts(
    stack: Stack, key: str, random_adapters: list[Path], peft_answer: PeftAnswer, index: int
) -> None:
    adapter = random_adapters[index]
    with stack.api(key) as api:
        uploaded = upload(api, f"peft-{index}", adapter).json()
    assert uploaded["status"] == "ready"
    expected = peft_answer(QUESTION, adapter, 24)
    assert ask(stack, key, uploaded["model"]) == expected
    assert expected != peft_answer(QUESTION, None, 24)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_adapters_greedy_answer_equals_pefts(
    stack: Stack, key: str, examples: dict[str, str], peft_answer: PeftAnswer, name: str
) -> None:
    assert ask(stack, key, examples[name]) == peft_answer(QUESTION, example(name), 24)


def test_the_answer_names_the_model_that_was_asked_for_and_nothing_of_the_inside(
    stack: Stack, key: str, examples: dict[str, str]
) -> None:
    body = {
        "model": examples["finance"],
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2,
        "stream": True,
    }
    with stack.api(key) as api:
        streamed = api.post("/v1/chat/completions", json=body)
        whole = api.post("/v1/chat/completions", json=body | {"stream": False})
        models = api.get("/v1/models")
    assert whole.json()["model"] == examples["finance"]
    for text in (streamed.text, whole.text, models.text):
        assert "adp_" not in text
        assert str(stack.data) not in text
        assert ".runtime" not in text


def test_uploads_neither_touch_a_running_stream_nor_the_engines_processes(
    stack: Stack, key: str
) -> None:
    pids = stack.engine_pids()
    texts: list[str] = []
    running = threading.Thread(
        target=lambda: texts.append(stream(stack, key, BASE_MODEL, max_tokens=100))
    )
    running.start()
    with stack.api(key) as api:
        for name in EXAMPLES:
            assert upload(api, f"beside-{name}", example(name)).json()["status"] == "ready"
    assert running.is_alive()
    running.join()
    assert texts == [ask(stack, key, BASE_MODEL, max_tokens=100)]
    assert stack.engine_pids() == pids


def test_a_redundant_load_does_not_restart_the_engine(stack: Stack) -> None:
    pids = stack.engine_pids()
    url = f"http://{stack.triton_url}/v2/repository/models/{BASE_MODEL}/load"
    assert httpx.post(url, timeout=120).is_success
    assert stack.engine_pids() == pids


def test_tenants_with_adapters_of_the_same_name_get_their_own_answers(
    stack: Stack, random_adapters: list[Path]
) -> None:
    mine, theirs = stack.new_key("mine"), stack.new_key("theirs")
    with stack.api(mine) as my_api, stack.api(theirs) as their_api:
        first = upload(my_api, "assistant", random_adapters[2]).json()
        second = upload(their_api, "assistant", random_adapters[3]).json()
        answers = [ask(stack, each, f"{BASE_MODEL}:assistant") for each in (mine, theirs)]
        for method in ("GET", "DELETE"):
            refused = their_api.request(method, f"/v1/adapters/{first['id']}")
            assert refused.status_code == 404
        assert [each["id"] for each in their_api.get("/v1/adapters").json()["data"]] == [
            second["id"]
        ]
        only_mine = upload(my_api, "only-mine", random_adapters[0]).json()["model"]
        body = {"model": only_mine, "messages": [{"role": "user", "content": "Hi"}]}
        unseen = their_api.post("/v1/chat/completions", json=body)
    assert answers[0] != answers[1]
    assert unseen.status_code == 404
    assert unseen.json()["error"]["code"] == "model_not_found"


def test_a_deleted_adapter_is_gone_at_once_while_its_stream_finishes(
    stack: Stack, random_adapters: list[Path]
) -> None:
    key = stack.new_key("deleter")
    with stack.api(key) as api:
        adapter = upload(api, "short-lived", random_adapters[2]).json()
        expected = ask(stack, key, adapter["model"], max_tokens=60)
        texts: list[str] = []
        running = threading.Thread(
            target=lambda: texts.append(stream(stack, key, adapter["model"], max_tokens=60))
        )
        running.start()
        wait_for(lambda: (status := stack.engine()) and status.in_flight, "the stream")
        assert api.delete(f"/v1/adapters/{adapter['id']}").json()["deleted"] is True
        body = {"model": adapter["model"], "messages": [{"role": "user", "content": "Hi"}]}
        assert api.post("/v1/chat/completions", json=body).status_code == 404
        assert api.delete(f"/v1/adapters/{adapter['id']}").status_code == 404
        running.join()
        assert texts == [expected]
        wait_for(lambda: not folders_of(stack, adapter["id"]), "the end of the files")
        wait_for(lambda: not engine_adapters_of(stack, adapter["id"]), "the end in the engine")
    assert stack.leftovers() == []


def test_the_blob_of_a_deleted_adapter_goes_unless_another_adapter_has_the_same(
    stack: Stack, random_adapters: list[Path]
) -> None:
    key = stack.new_key("sharer")
    with stack.api(key) as api:
        before = blobs(stack)
        first = upload(api, "one", random_adapters[1]).json()
        second = upload(api, "two", random_adapters[1]).json()
        api.delete(f"/v1/adapters/{first['id']}")
        wait_for(lambda: not folders_of(stack, first["id"]), "the first one's end")
        assert ask(stack, key, second["model"])
        api.delete(f"/v1/adapters/{second['id']}")
        wait_for(lambda: blobs(stack) <= before, "the end of the blobs")


def folders_of(stack: Stack, adapter_id: str) -> list[str]:
    return [name for name in stack.adapter_folders() if name.startswith(adapter_id)]


def engine_adapters_of(stack: Stack, adapter_id: str) -> list[str]:
    status = stack.engine()
    assert status is not None
    return [name for name in status.adapters if name.startswith(adapter_id)]


def blobs(stack: Stack) -> set[str]:
    return {path.name for path in (stack.data / "blobs").glob("??/*")}
