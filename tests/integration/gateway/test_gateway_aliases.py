"""Aliases over HTTP: made, listed, asked for and deleted, and never seen by another tenant."""

from typing import Any

import httpx
import pytest

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import Client, Gateway, Prompt, base_model
from tests.integration.gateway.stand_in import StandIn

CUSTOMER = "base-llm-with-customerA-adapter"


def _error(answer: httpx.Response) -> dict[str, Any]:
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def _put(client: Client, alias: str, **targets: int) -> httpx.Response:
    """The names and weights of the tenant's adapters on `tiny`."""
    body = {
        "targets": [{"model": f"tiny:{name}", "weight": weight} for name, weight in targets.items()]
    }
    return client.http.put(f"/v1/aliases/{alias}", json=body)


def _model(client: Client, model_id: str) -> dict[str, Any] | None:
    models = client.http.get("/v1/models").json()["data"]
    return next((model for model in models if model["id"] == model_id), None)


def test_an_alias_is_made_then_replaced_then_deleted(client: Client) -> None:
    client.upload_as("finance", AdapterStatus.READY)
    made = client.http.put(f"/v1/aliases/{CUSTOMER}", json={"model": "tiny:finance"})
    assert made.status_code == 201
    alias = made.json()
    times = alias.pop("created_at"), alias.pop("updated_at")
    assert all(isinstance(time, int) for time in times)
    assert alias == {
        "id": CUSTOMER,
        "object": "alias",
        "alias": CUSTOMER,
        "targets": [{"model": "tiny:finance", "weight": 1}],
    }
    targets = [{"model": "tiny:finance", "weight": 90}, {"model": "tiny", "weight": 10}]
    replaced = client.http.put(f"/v1/aliases/{CUSTOMER}", json={"targets": targets})
    assert (replaced.status_code, replaced.json()["targets"]) == (200, targets)
    assert client.http.get(f"/v1/aliases/{CUSTOMER}").json() == replaced.json()
    assert client.http.get("/v1/aliases").json() == {
        "object": "list",
        "data": [replaced.json()],
        "has_more": False,
        "first_id": CUSTOMER,
        "last_id": CUSTOMER,
    }
    deleted = client.http.delete(f"/v1/aliases/{CUSTOMER}")
    assert (deleted.status_code, deleted.json()) == (
        200,
        {"id": CUSTOMER, "object": "alias", "deleted": True},
    )
    for method in ("GET", "DELETE"):
        again = client.http.request(method, f"/v1/aliases/{CUSTOMER}")
        assert (again.status_code, _error(again)["code"]) == (404, "alias_not_found")
    assert client.http.get("/v1/aliases").json()["data"] == []


def test_a_request_for_an_alias_goes_to_its_target_and_echoes_the_alias(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    adapter = client.upload_as("finance", AdapterStatus.READY)
    _put(client, CUSTOMER, finance=1)
    text = prompt("hello")
    completion = client.openai.chat.completions.create(
        model=CUSTOMER, messages=[{"role": "user", "content": text}]
    )
    assert completion.model == CUSTOMER
    exchange = stand_in.wait_for(text)
    assert exchange.base_model == "tiny"
    assert exchange.request["lora_name"] == adapter.lora_name
    text = prompt("hello")
    stream = client.openai.chat.completions.create(
        model=CUSTOMER, messages=[{"role": "user", "content": text}], stream=True
    )
    assert {chunk.model for chunk in stream} == {CUSTOMER}
    assert stand_in.wait_for(text).request["lora_name"] == adapter.lora_name


def test_the_target_may_change_under_the_alias(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    for name in ("old", "new"):
        adapter = client.upload_as(name, AdapterStatus.READY)
        _put(client, "prod", **{name: 1})
        text = prompt("hello")
        assert client.chat(text, model="prod").status_code == 200
        assert stand_in.wait_for(text).request["lora_name"] == adapter.lora_name


def test_a_canary_s_targets_all_answer_until_one_is_gone(
    client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    stable, canary = (client.upload_as(name, AdapterStatus.READY) for name in ("stable", "canary"))
    _put(client, "prod", stable=1, canary=1)

    def asked() -> set[str | None]:
        texts = [prompt("hello") for _ in range(20)]
        assert [client.chat(text, model="prod").status_code for text in texts] == [200] * 20
        return {stand_in.wait_for(text).request["lora_name"] for text in texts}

    assert asked() == {stable.lora_name, canary.lora_name}
    client.http.delete(f"/v1/adapters/{canary.id}")
    assert asked() == {stable.lora_name}
    client.http.delete(f"/v1/adapters/{stable.id}")
    answer = client.chat("hello", model="prod")
    assert (answer.status_code, _error(answer)["code"]) == (404, "model_not_found")
    assert "`prod`" in _error(answer)["message"]


def test_another_tenant_s_alias_is_unknown_in_every_way(
    client: Client, other_client: Client
) -> None:
    other_client.upload_as("finance", AdapterStatus.READY)
    _put(other_client, CUSTOMER, finance=1)
    for method, path in (
        ("GET", "/v1/aliases/"),
        ("DELETE", "/v1/aliases/"),
        ("GET", "/v1/models/"),
    ):
        theirs = client.http.request(method, path + CUSTOMER)
        nobodys = client.http.request(method, path + "nobodys")
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.text.replace(CUSTOMER, "nobodys") == nobodys.text
    theirs, nobodys = client.chat("hello", model=CUSTOMER), client.chat("hello", model="nobodys")
    assert (theirs.status_code, _error(theirs)["code"]) == (404, "model_not_found")
    assert theirs.text.replace(CUSTOMER, "nobodys") == nobodys.text
    assert client.http.get("/v1/aliases").json()["data"] == []
    assert _model(client, CUSTOMER) is None
    assert other_client.chat("hello", model=CUSTOMER).status_code == 200


def test_an_alias_can_t_be_pointed_at_another_tenant_s_adapter(
    client: Client, other_client: Client
) -> None:
    other_client.upload_as("theirs", AdapterStatus.READY)
    theirs = _put(client, "prod", theirs=1)
    nobodys = _put(client, "prod", nobodys=1)
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.text.replace("tiny:theirs", "tiny:nobodys") == nobodys.text
    # Nor does one of the same name, once one's own is gone, lead to it.
    mine = client.upload_as("theirs", AdapterStatus.READY)
    _put(client, "prod", theirs=1)
    client.http.delete(f"/v1/adapters/{mine.id}")
    assert client.chat("hello", model="prod").status_code == 404


def test_the_same_alias_of_two_tenants_is_two(
    client: Client, other_client: Client, stand_in: StandIn, prompt: Prompt
) -> None:
    for each in (client, other_client):
        adapter = each.upload_as("finance", AdapterStatus.READY)
        assert _put(each, "prod", finance=1).status_code == 201
        text = prompt("hello")
        assert each.chat(text, model="prod").status_code == 200
        assert stand_in.wait_for(text).request["lora_name"] == adapter.lora_name
    client.http.delete("/v1/aliases/prod")
    assert other_client.http.get("/v1/aliases/prod").status_code == 200


@pytest.mark.parametrize(
    ("alias", "body", "status", "param", "code"),
    [
        ("prod", {"model": "tiny:none"}, 404, "model", "model_not_found"),
        ("prod", {"model": "none"}, 404, "model", "model_not_found"),
        ("prod", {"model": "first"}, 404, "model", "model_not_found"),
        ("prod", {"model": "prod"}, 404, "model", "model_not_found"),
        ("prod", {"targets": []}, 400, "targets", "invalid_value"),
        ("prod", {"model": ""}, 404, "model", "model_not_found"),
        ("tiny", {"model": "tiny"}, 409, "alias", "model_exists"),
        ("a:b", {"model": "tiny"}, 400, "alias", "invalid_name"),
        ("x" * 65, {"model": "tiny"}, 400, "alias", "invalid_name"),
        ("a/b", {"model": "tiny"}, 404, None, "unknown_url"),
    ],
)
def test_an_alias_that_can_t_be_is_refused_and_changes_nothing(
    client: Client, alias: str, body: object, status: int, param: str | None, code: str
) -> None:
    client.http.put("/v1/aliases/first", json={"model": "tiny"})
    before = client.http.get("/v1/aliases").json()
    answer = client.http.put(f"/v1/aliases/{alias}", json=body)
    assert (answer.status_code, _error(answer)["param"], _error(answer)["code"]) == (
        status,
        param,
        code,
    )
    assert client.http.get("/v1/aliases").json() == before


def test_a_refused_replacement_leaves_the_alias_as_it_was(client: Client) -> None:
    before = client.http.put("/v1/aliases/prod", json={"model": "tiny"}).json()
    targets = [{"model": "tiny", "weight": 1}, {"model": "tiny:none", "weight": 1}]
    refused = client.http.put("/v1/aliases/prod", json={"targets": targets})
    assert refused.status_code == 404
    assert client.http.get("/v1/aliases/prod").json() == before


def test_a_tenant_may_have_so_many_aliases(client: Client) -> None:
    for number in range(100):
        client.http.put(f"/v1/aliases/a{number}", json={"model": "tiny"})
    answer = client.http.put("/v1/aliases/one-more", json={"model": "tiny"})
    assert answer.status_code == 429
    assert (_error(answer)["type"], _error(answer)["code"]) == (
        "insufficient_quota",
        "alias_limit_reached",
    )
    assert answer.headers["x-should-retry"] == "false"


def test_the_models_hold_the_aliases_that_can_answer(client: Client, gateway: Gateway) -> None:
    for name in ("stable", "canary"):
        client.upload_as(name, AdapterStatus.READY)
    _put(client, "single", stable=1)
    _put(client, "canaried", stable=9, canary=1)
    client.http.put("/v1/aliases/to-base", json={"model": "org/cold"})
    mixed = [{"model": "tiny:stable", "weight": 1}, {"model": "org/cold", "weight": 1}]
    client.http.put("/v1/aliases/mixed", json={"targets": mixed})
    shown = {
        name: [model["root"], model["parent"], model["max_model_len"], model["owned_by"]]
        for name in ("single", "canaried", "to-base", "mixed")
        if (model := _model(client, name)) is not None
    }
    owner = client.tenant.name
    assert shown == {
        "single": ["tiny:stable", "tiny", 128, owner],
        "canaried": ["canaried", "tiny", 128, owner],
        "to-base": ["org/cold", "org/cold", 128, owner],
        "mixed": ["mixed", None, 128, owner],
    }
    adapters = client.registry.adapters(client.tenant.id)
    for adapter in adapters:
        client.http.delete(f"/v1/adapters/{adapter.id}")
    assert [_model(client, name) is None for name in shown] == [True, True, False, False]
    assert gateway.registry.alias(client.tenant.id, "single").targets


def test_an_alias_s_length_is_that_of_its_smallest_target(client: Client, gateway: Gateway) -> None:
    short = base_model("short")
    gateway.registry.put_base_model(
        type(short)(
            name="short", max_lora_rank=8, max_model_len=32, tensor_shapes=short.tensor_shapes
        )
    )
    targets = [{"model": "tiny", "weight": 1}, {"model": "short", "weight": 1}]
    client.http.put("/v1/aliases/mixed", json={"targets": targets})
    model = _model(client, "mixed")
    assert model is not None
    assert (model["max_model_len"], model["parent"], model["root"]) == (32, None, "mixed")
    gateway.registry.remove_base_model("short")


def test_a_base_model_that_comes_later_wins_over_an_alias(
    client: Client, gateway: Gateway, stand_in: StandIn, prompt: Prompt
) -> None:
    client.upload_as("finance", AdapterStatus.READY)
    _put(client, "coming", finance=1)
    gateway.registry.put_base_model(base_model("coming"))
    text = prompt("hello")
    assert client.chat(text, model="coming").status_code == 200
    assert stand_in.wait_for(text).base_model == "coming"
    models = client.http.get("/v1/models").json()["data"]
    assert [model["owned_by"] for model in models if model["id"] == "coming"] == ["system"]
    assert client.http.get("/v1/aliases/coming").status_code == 200
    gateway.registry.remove_base_model("coming")
