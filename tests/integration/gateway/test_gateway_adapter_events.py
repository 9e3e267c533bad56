"""The events of an adapter on its way, over real HTTP."""

import json
from typing import Any

import httpx

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import Client


def _events(answer: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    events = []
    for block in answer.iter_text():
        for event in filter(None, block.split("\n\n")):
            name, data = event.split("\n")
            document = json.loads(data.removeprefix("data: "))
            events.append((name.removeprefix("event: "), document))
    return events


def test_what_is_settled_is_told_once(client: Client) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)
    answer = client.http.get(f"/v1/adapters/{adapter.id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    shown = client.http.get(f"/v1/adapters/{adapter.id}").json()
    assert _events(answer) == [("adapter", shown)]


def test_each_change_is_told_until_the_adapter_is_ready(client: Client) -> None:
    uploaded = client.upload("finance").json()
    adapter = client.registry.adapter(client.tenant.id, uploaded["id"])
    with client.http.stream("GET", f"/v1/adapters/{adapter.id}/events") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "event: adapter"
        assert json.loads(next(lines).removeprefix("data: "))["status"] == "loading"
        client.registry.set_adapter_status(adapter.id, adapter.revision.digest, AdapterStatus.READY)
        rest = [line for line in lines if line]
    assert rest[0] == "event: adapter"
    assert json.loads(rest[1].removeprefix("data: "))["status"] == "ready"
    assert len(rest) == 2


def test_a_deletion_is_the_last_event(client: Client) -> None:
    adapter_id = client.upload("finance").json()["id"]
    with client.http.stream("GET", f"/v1/adapters/{adapter_id}/events") as answer:
        lines = answer.iter_lines()
        next(lines)
        client.registry.delete_adapter(client.tenant.id, adapter_id)
        rest = [line for line in lines if line]
    assert rest[-2] == "event: deleted"
    assert json.loads(rest[-1].removeprefix("data: "))["deleted"] is True


def test_another_tenants_adapter_has_no_events(client: Client, other_client: Client) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)
    answer = other_client.http.get(f"/v1/adapters/{adapter.id}/events")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "adapter_not_found"
