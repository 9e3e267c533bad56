"""GET /v1/models/{id}, and base models that take no adapters."""

from collections.abc import Iterator
from dataclasses import replace

import openai
import pytest

from adapter_sync.record import AdapterStatus
from tests.integration.gateway.running import Client, Gateway, base_model
from tests.integration.gateway.stand_in import STARTING_BASE_MODEL


@pytest.fixture
def embedder(gateway: Gateway) -> Iterator[str]:
    base = replace(base_model("embedder"), tensor_shapes={}, takes_adapters=False)
    gateway.registry.put_base_model(base)
    yield base.name
    gateway.registry.remove_base_model(base.name)


def test_the_sdk_retrieves_each_model_by_its_id(client: Client, gateway: Gateway) -> None:
    client.upload_as("on-tiny", AdapterStatus.READY)
    client.upload("on-cold", base_model="org/cold")
    [cold] = gateway.registry.adapters(client.tenant.id)[:1]
    gateway.registry.set_adapter_status(cold.id, cold.revision.digest, AdapterStatus.READY)
    client.http.put("/v1/aliases/prod", json={"model": "org/cold:on-cold"})
    listed = {model.id: model for model in client.openai.models.list()}
    for model_id in ("tiny", "org/cold", "tiny:on-tiny", "org/cold:on-cold", "prod"):
        assert client.openai.models.retrieve(model_id) == listed[model_id]


def test_an_id_may_be_escaped_or_not(client: Client) -> None:
    for path in ("org/cold", "org%2Fcold", "org%2fcold"):
        answer = client.http.get(f"/v1/models/{path}")
        assert (answer.status_code, answer.json()["id"]) == (200, "org/cold")


def test_what_is_not_listed_is_not_found_in_the_same_words(
    client: Client, other_client: Client
) -> None:
    client.upload_as("loading", AdapterStatus.LOADING)
    other_client.upload_as("theirs", AdapterStatus.READY)
    other_client.http.put("/v1/aliases/theirs", json={"model": "tiny:theirs"})
    for model_id in ("gpt", "tiny:none", "tiny:loading", "tiny:theirs", "theirs", "org/", "a/b:c"):
        answer = client.http.get(f"/v1/models/{model_id}")
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": f"The model `{model_id}` does not exist or you do not have access to it.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
        with pytest.raises(openai.NotFoundError):
            client.openai.models.retrieve(model_id)


def test_a_base_model_without_adapters_is_listed(client: Client, embedder: str) -> None:
    model = client.http.get(f"/v1/models/{embedder}").json()
    assert (model["root"], model["parent"], model["max_model_len"]) == (embedder, None, 128)


def test_a_base_model_is_listed_once_its_engine_has_started(
    client: Client, gateway: Gateway
) -> None:
    gateway.registry.put_base_model(base_model(STARTING_BASE_MODEL))
    uploaded = client.upload("early", base_model=STARTING_BASE_MODEL).json()
    client.report(uploaded["id"], AdapterStatus.READY)
    try:
        listed = {model.id for model in client.openai.models.list()}
        answer = client.http.get(f"/v1/models/{STARTING_BASE_MODEL}")
    finally:
        client.http.delete(f"/v1/adapters/{uploaded['id']}")
        gateway.registry.remove_base_model(STARTING_BASE_MODEL)
    assert "tiny" in listed
    assert not any(model.startswith(STARTING_BASE_MODEL) for model in listed)
    assert answer.status_code == 404


def test_an_upload_for_a_base_model_without_adapters_is_refused_and_leaves_nothing(
    client: Client, gateway: Gateway, embedder: str
) -> None:
    answer = client.upload("finance", base_model=embedder)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("adapters_not_supported", "base_model")
    assert "'embedder' takes no adapters" in error["message"]
    assert error["message"].endswith("are: 'org/cold', 'tiny'.")
    assert client.http.get("/v1/adapters").json()["data"] == []
    assert list((gateway.data_folder / "staging" / "uploads").iterdir()) == []
