"""Replacing adapters and going back, seen through HTTP; requests go on meanwhile."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from adapter_sync.record import Adapter, AdapterStatus
from tests.integration.gateway.running import PATIENCE_S, Client, Prompt, adapter_weights
from tests.integration.gateway.stand_in import StandIn

LOADING, READY, FAILED = AdapterStatus.LOADING, AdapterStatus.READY, AdapterStatus.FAILED


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def _revisions(client: Client, adapter_id: str) -> list[dict[str, Any]]:
    listed = client.http.get(f"/v1/adapters/{adapter_id}/revisions").json()
    assert listed["object"] == "list"
    data: list[dict[str, Any]] = listed["data"]
    return data


def _roll_back(client: Client, adapter_id: str, body: Any = None, **headers: str) -> httpx.Response:
    url = f"/v1/adapters/{adapter_id}/rollback"
    return client.http.post(url, json=body, headers={"prefer": "wait=0"} | headers)


@pytest.fixture
def finance(client: Client) -> Adapter:
    """An adapter whose first revision is ready."""
    return client.upload_as("finance", READY)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_the_same_name_again_is_refused_unless_it_is_to_be_replaced(
    client: Client, finance: Adapter
) -> None:
    data = {"name": "finance", "base_model": "tiny"}
    for fields in ({}, {"replace": "false"}, {"replace": "0"}):
        answer = client.http.post(
            "/v1/adapters/upload", data=data | fields, files={"file": adapter_weights(seed=1)}
        )
        assert (answer.status_code, _error(answer)["code"]) == (409, "adapter_exists")
        assert "replace=true" in _error(answer)["message"]
    assert [each["number"] for each in _revisions(client, finance.id)] == [1]


@pytest.mark.parametrize("replace", ["true", "True", "1"])
def test_a_replacement_is_a_new_revision_of_the_same_adapter(
    client: Client, finance: Adapter, replace: str
) -> None:
    before = client.http.get(f"/v1/adapters/{finance.id}").json()
    answer = client.upload("finance", adapter_weights(rank=2), replace=replace)
    assert answer.status_code == 200
    assert answer.headers["location"] == f"/v1/adapters/{finance.id}"
    after = answer.json()
    changed = {key for key in after if after[key] != before[key]}
    assert changed - {"updated_at"} == {
        "status",
        "progress",
        "revision",
        "etag",
        "rank",
        "lora_alpha",
        "size_bytes",
        "warnings",
    }
    assert (after["status"], after["revision"], after["serving_revision"]) == ("loading", 2, 1)


def test_replacing_what_is_not_there_creates_it(client: Client) -> None:
    answer = client.upload("finance", replace="true")
    assert (answer.status_code, answer.json()["revision"]) == (201, 1)


@pytest.mark.parametrize("replace", ["yes", "2", "null", " true"])
def test_a_replace_that_is_neither_true_nor_false_is_named(client: Client, replace: str) -> None:
    answer = client.upload("finance", replace=replace)
    assert answer.status_code == 400
    assert (_error(answer)["param"], _error(answer)["code"]) == ("replace", "invalid_value")
    assert client.http.get("/v1/adapters").json()["data"] == []


def test_a_bad_replacement_leaves_everything_as_it_was(client: Client, finance: Adapter) -> None:
    before = client.http.get(f"/v1/adapters/{finance.id}").text
    answer = client.upload("finance", b"no safetensors", replace="true")
    assert _error(answer)["code"] == "invalid_adapter"
    assert client.http.get(f"/v1/adapters/{finance.id}").text == before


@pytest.mark.parametrize("status", [LOADING, FAILED])
def test_the_old_revision_answers_until_the_new_one_is_ready(
    client: Client, finance: Adapter, stand_in: StandIn, prompt: Prompt, status: AdapterStatus
) -> None:
    client.replace("finance", 1)
    newest = client.report(finance.id, status, "too bad" if status is FAILED else None)
    assert client.http.get(f"/v1/adapters/{finance.id}").json()["status"] == status
    models = [model["id"] for model in client.http.get("/v1/models").json()["data"]]
    assert "tiny:finance" in models
    for expected in (finance.lora_name, newest.lora_name):
        assert client.chat(text := prompt("hello"), model="tiny:finance").status_code == 200
        assert stand_in.wait_for(text).request["lora_name"] == expected
        client.report(finance.id, READY)


def test_a_failed_replacement_shows_why_and_a_later_one_mends_it(
    client: Client, finance: Adapter
) -> None:
    client.replace("finance", 1)
    client.report(finance.id, FAILED, "too bad")
    shown = client.http.get(f"/v1/adapters/{finance.id}").json()
    assert (shown["status"], shown["serving_revision"]) == ("failed", 1)
    assert shown["error"]["message"] == "too bad"
    client.replace("finance", 2)
    client.report(finance.id, READY)
    mended = client.http.get(f"/v1/adapters/{finance.id}").json()
    assert (mended["status"], mended["error"], mended["serving_revision"]) == ("ready", None, 3)


def test_an_upload_waits_for_the_new_revision_though_the_old_one_serves(
    client: Client, finance: Adapter, threads: ThreadPoolExecutor
) -> None:
    started = time.monotonic()
    waiting = threads.submit(client.replace, "finance", 1, prefer="wait=1")
    assert waiting.result().json()["status"] == "loading"
    assert time.monotonic() - started >= 1
    waiting = threads.submit(client.replace, "finance", 2, prefer="wait=60")
    while client.registry.adapter(client.tenant.id, finance.id).revision.number < 3:
        time.sleep(0.01)
    assert not waiting.done()
    client.report(finance.id, READY)
    answer = waiting.result().json()
    assert (answer["status"], answer["serving_revision"]) == ("ready", 3)


@pytest.mark.usefixtures("finance")
def test_the_same_content_again_is_ready_at_once(client: Client) -> None:
    answer = client.upload("finance", replace="true", prefer="wait=60")
    assert answer.elapsed.total_seconds() < 30
    assert (answer.json()["status"], answer.json()["serving_revision"]) == ("ready", 2)


def test_a_replacement_needs_no_room_in_the_tier(client: Client) -> None:
    for index in range(20):
        client.upload(f"a{index}")
    assert client.replace("a0", 1).status_code == 200


def test_the_etag_is_a_header_and_changes_with_every_revision(
    client: Client, finance: Adapter
) -> None:
    etags = []
    for answer in (
        client.http.get(f"/v1/adapters/{finance.id}"),
        client.replace("finance", 1),
        client.replace("finance", 1),
        _roll_back(client, finance.id),
    ):
        assert answer.headers["etag"] == answer.json()["etag"]
        assert answer.headers["etag"].startswith('"')
        etags.append(answer.headers["etag"])
    assert len(set(etags)) == 4
    assert [each["etag"] for each in _revisions(client, finance.id)] == etags[::-1]


def test_a_write_happens_only_to_the_state_that_was_seen(client: Client, finance: Adapter) -> None:
    first = finance.etag
    assert client.replace("finance", 1, if_match=f'"x", {first}').status_code == 200
    for outdated in (first, '"x"', f"W/{finance.etag}", "nonsense", ""):
        refused = (
            client.replace("finance", 2, if_match=outdated),
            _roll_back(client, finance.id, **{"if-match": outdated}),
            client.http.delete(f"/v1/adapters/{finance.id}", headers={"if-match": outdated}),
        )
        for answer in refused:
            error = _error(answer)
            assert answer.status_code == 412
            assert (error["code"], error["param"]) == ("precondition_failed", None)
            assert "Read the adapter again" in error["message"]
    assert [each["number"] for each in _revisions(client, finance.id)] == [2, 1]
    current = _roll_back(client, finance.id, **{"if-match": "*"}).headers["etag"]
    deleted = client.http.delete(f"/v1/adapters/{finance.id}", headers={"if-match": current})
    assert deleted.status_code == 200


@pytest.mark.parametrize("if_match", ["*", '"x"'])
def test_a_condition_on_an_adapter_that_is_not_there_is_not_met(
    client: Client, if_match: str
) -> None:
    answer = client.upload("finance", replace="true", if_match=if_match)
    assert (answer.status_code, _error(answer)["code"]) == (412, "precondition_failed")
    assert client.http.get("/v1/adapters").json()["data"] == []


def test_of_two_writers_at_the_same_time_one_wins(
    client: Client, finance: Adapter, threads: ThreadPoolExecutor
) -> None:
    answers = [
        threads.submit(client.replace, "finance", seed, if_match=finance.etag)
        for seed in range(1, 5)
    ]
    codes = sorted(answer.result().status_code for answer in answers)
    assert codes == [200, 412, 412, 412]


def test_revisions_are_listed_newest_first(client: Client, finance: Adapter) -> None:
    answer = client.upload("finance", adapter_weights(rank=2), replace="true", lora_alpha="8")
    shown = answer.json()
    new, old = _revisions(client, finance.id)
    assert new == {
        "object": "adapter.revision",
        "number": 2,
        "etag": shown["etag"],
        "rank": 2,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
        "size_bytes": shown["size_bytes"],
        "created_at": shown["updated_at"],
        "serving": False,
        "warnings": [],
    }
    assert (old["number"], old["serving"], old["etag"]) == (1, True, finance.etag)
    assert len(old["warnings"]) == 1


def test_going_back_makes_a_new_revision_of_the_last_but_one(
    client: Client, finance: Adapter
) -> None:
    client.replace("finance", 1)
    client.report(finance.id, READY)
    answer = _roll_back(client, finance.id)
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["revision"], shown["status"], shown["serving_revision"]) == (3, "loading", 2)
    assert client.report(finance.id, READY).lora_name == finance.lora_name
    assert [each["serving"] for each in _revisions(client, finance.id)] == [True, False, False]


def test_going_back_to_a_revision_of_ones_choice(client: Client, finance: Adapter) -> None:
    client.replace("finance", 1)
    client.replace("finance", 2)
    shown = _roll_back(client, finance.id, {"revision": 1}).json()
    assert (shown["revision"], shown["status"], shown["serving_revision"]) == (4, "ready", 4)
    shown = _roll_back(client, finance.id, {"revision": None}).json()
    assert (shown["revision"], shown["status"]) == (5, "loading")


def test_going_back_waits_for_the_revision_that_it_makes(
    client: Client, finance: Adapter, threads: ThreadPoolExecutor
) -> None:
    client.replace("finance", 1)
    client.report(finance.id, READY)
    waiting = threads.submit(_roll_back, client, finance.id, prefer="wait=60")
    while client.registry.adapter(client.tenant.id, finance.id).revision.number < 3:
        time.sleep(0.01)
    assert not waiting.done()
    client.report(finance.id, READY)
    assert waiting.result().json()["serving_revision"] == 3


def test_a_revision_that_is_not_kept_is_not_found(client: Client, finance: Adapter) -> None:
    for seed in range(1, 5):
        client.replace("finance", seed)
        client.report(finance.id, READY)
    assert [each["number"] for each in _revisions(client, finance.id)] == [5, 4, 3]
    for number in (1, 6, 0, -1, 10**40):
        answer = _roll_back(client, finance.id, {"revision": number})
        assert (answer.status_code, _error(answer)["code"]) == (404, "revision_not_found")
        assert _error(answer)["param"] == "revision"


def test_with_nothing_to_go_back_to_it_is_a_409(client: Client, finance: Adapter) -> None:
    answer = _roll_back(client, finance.id)
    assert (answer.status_code, answer.headers["x-should-retry"]) == (409, "false")
    assert _error(answer)["code"] == "no_earlier_revision"


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ("{", None),
        ("[1]", None),
        ('{"revision": "1"}', "revision"),
        ('{"revision": 1.5}', "revision"),
        ('{"revision": true}', "revision"),
        ('{"number": 1}', "number"),
    ],
)
def test_a_bad_body_is_a_400(
    client: Client, finance: Adapter, content: str, param: str | None
) -> None:
    answer = client.http.post(f"/v1/adapters/{finance.id}/rollback", content=content)
    assert (answer.status_code, _error(answer)["param"]) == (400, param)
    assert len(_revisions(client, finance.id)) == 1


def test_another_tenants_revisions_are_not_found_in_the_same_words(
    client: Client, other_client: Client, finance: Adapter
) -> None:
    for method, path in (("GET", "revisions"), ("POST", "rollback")):
        for headers in ({}, {"if-match": "*"}, {"if-match": '"x"'}):
            theirs, nobodys = (
                other_client.http.request(
                    method, f"/v1/adapters/{adapter_id}/{path}", headers=headers
                )
                for adapter_id in (finance.id, "adp_nobodys")
            )
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.text.replace(finance.id, "adp_nobodys") == nobodys.text
    for if_match in ("*", finance.etag):
        assert other_client.replace("finance", 1, if_match=if_match).status_code == 412
    assert other_client.replace("finance", 1).json()["id"] != finance.id
    assert len(_revisions(client, finance.id)) == 1


def test_a_deleted_adapter_has_no_revisions(client: Client, finance: Adapter) -> None:
    client.replace("finance", 1)
    client.http.delete(f"/v1/adapters/{finance.id}")
    assert client.http.get(f"/v1/adapters/{finance.id}/revisions").status_code == 404
    assert _roll_back(client, finance.id).status_code == 404
    assert client.chat("hello", model="tiny:finance").status_code == 404


def _chat(
    threads: ThreadPoolExecutor, client: Client, text: str, *, stream: bool
) -> Future[httpx.Response]:
    return threads.submit(client.chat, text, model="tiny:finance", stream=stream)


def _wait_for_attempt(stand_in: StandIn, text: str, number: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while stand_in.attempts[text] < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_whose_revision_has_just_left_the_engine_is_answered_by_the_next(
    client: Client,
    finance: Adapter,
    stand_in: StandIn,
    prompt: Prompt,
    threads: ThreadPoolExecutor,
    *,
    stream: bool,
) -> None:
    text = prompt("replaced twice")
    answering = _chat(threads, client, text, stream=stream)
    names, ids = [], set()
    for attempt in (1, 2):
        _wait_for_attempt(stand_in, text, attempt)
        names.append(stand_in.exchanges[text].request["lora_name"])
        ids.add(stand_in.exchanges[text].request["request_id"])
        client.replace("finance", attempt)
        newest = client.report(finance.id, READY)
    answer = answering.result()
    assert answer.status_code == 200
    assert "Paris" in answer.text
    assert '"error"' not in answer.text
    last = stand_in.exchanges[text].request
    assert last["lora_name"] == newest.lora_name
    assert len({*names, last["lora_name"]}) == 3
    assert len({*ids, last["request_id"]}) == 3


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_is_not_asked_again_without_end(
    client: Client,
    finance: Adapter,
    stand_in: StandIn,
    prompt: Prompt,
    threads: ThreadPoolExecutor,
    *,
    stream: bool,
) -> None:
    text = prompt("always replaced")
    answering = _chat(threads, client, text, stream=stream)
    seeds = iter(range(1, 100))
    while not answering.done():
        client.replace("finance", next(seeds))
        client.report(finance.id, READY)
        time.sleep(0.05)
    answer = answering.result()
    assert "adapter_not_ready" in answer.text
    assert finance.id not in answer.text
    assert stand_in.attempts[text] == 4


def test_a_request_is_asked_once_when_the_adapter_is_still_the_same(
    client: Client, finance: Adapter, stand_in: StandIn, prompt: Prompt
) -> None:
    assert finance.serving is not None
    answer = client.chat(text := prompt("replaced"), model="tiny:finance")
    assert (answer.status_code, _error(answer)["code"]) == (503, "adapter_not_ready")
    assert stand_in.attempts[text] == 1


def test_a_request_whose_adapter_is_deleted_on_its_way_is_not_found(
    client: Client,
    finance: Adapter,
    stand_in: StandIn,
    prompt: Prompt,
    threads: ThreadPoolExecutor,
) -> None:
    text = prompt("replaced")
    answering = _chat(threads, client, text, stream=False)
    stand_in.wait_for(text)
    client.http.delete(f"/v1/adapters/{finance.id}")
    answer = answering.result()
    assert (answer.status_code, _error(answer)["code"]) == (404, "model_not_found")


def test_replacing_and_going_back_lose_no_request(
    client: Client, finance: Adapter, prompt: Prompt, threads: ThreadPoolExecutor
) -> None:
    stopping = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        while not stopping.is_set():
            answer = client.chat(prompt("hello"), model="tiny:finance", stream=True)
            statuses.append(answer.status_code)

    asking = [threads.submit(ask) for _ in range(2)]
    try:
        for seed in range(1, 6):
            client.replace("finance", seed)
            client.report(finance.id, FAILED if seed % 2 else READY)
            _roll_back(client, finance.id)
            client.report(finance.id, READY)
    finally:
        stopping.set()
    for each in asking:
        each.result()
    assert set(statuses) == {200}
