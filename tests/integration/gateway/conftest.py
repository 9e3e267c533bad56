"""One gateway for all tests here, a tenant for each, and the stand-in for Triton behind it."""

import uuid
from collections.abc import Iterator

import huggingface_hub.constants
import pytest

from tests.hub_server import Hub, running_hub
from tests.integration.gateway.running import (
    BASE_MODEL,
    FAST_LIMITS,
    OTHER_BASE_MODEL,
    Client,
    Gateway,
    Prompt,
    base_model,
    client_of,
    running_gateway,
)
from tests.integration.gateway.stand_in import StandIn, stand_in_server


@pytest.fixture(scope="session")
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture(scope="session")
def triton_port(stand_in: StandIn) -> Iterator[int]:
    with stand_in_server(stand_in) as port:
        yield port


@pytest.fixture(scope="session")
def gateway(triton_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("data")
    with running_gateway(folder, triton_port, FAST_LIMITS) as gateway:
        for name in (BASE_MODEL, OTHER_BASE_MODEL):
            gateway.registry.put_base_model(base_model(name))
        yield gateway


@pytest.fixture(autouse=True)
def _answers_as_documented(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every answer of the shared gateway, in every test here, is one that its document has."""
    yield
    if "gateway" in request.fixturenames:
        gateway: Gateway = request.getfixturevalue("gateway")
        departures = list(gateway.conforming.departures)
        gateway.conforming.departures.clear()
        assert departures == []


@pytest.fixture
def client(gateway: Gateway) -> Iterator[Client]:
    with client_of(gateway) as client:
        yield client


@pytest.fixture
def other_client(gateway: Gateway) -> Iterator[Client]:
    with client_of(gateway) as client:
        yield client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        # What HF_ENDPOINT does when the library is imported.
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub


@pytest.fixture
def prompt() -> Prompt:
    """A prompt that runs a script and is this test's alone."""
    return lambda script: f"{script}#{uuid.uuid4().hex}"
