"""A registry on a real SQLite file and on a real PostgreSQL server, and what it takes to fill it.

A test that asks for the file itself runs on SQLite alone.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine

from adapter_sync.record import BaseModel, Revision, Tenant
from adapter_sync.registry import Registry


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "registry_url" in metafunc.fixturenames:
        asks_for_the_file = "registry_file" in metafunc.fixturenames
        databases = ["sqlite"] if asks_for_the_file else ["sqlite", "postgresql"]
        metafunc.parametrize("database", databases)


@pytest.fixture
def registry_file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "registry.db"


@pytest.fixture
def registry_url(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if database == "postgresql":
        url: str = request.getfixturevalue("postgresql_url")
        return url
    return f"sqlite:///{tmp_path / 'data' / 'registry.db'}"


@pytest.fixture
def connection(registry_url: str) -> Iterator[Connection]:
    """The database itself, each statement a transaction of its own."""
    engine = create_engine(registry_url, isolation_level="AUTOCOMMIT")
    with engine.connect() as opened:
        yield opened
    engine.dispose()


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    with closing(Registry.open(registry_url)) as opened:
        yield opened


@pytest.fixture
def base() -> BaseModel:
    return BaseModel(
        name="tiny",
        max_lora_rank=8,
        max_model_len=512,
        tensor_shapes={"model.norm.weight": (4,), "model.layers.0.mlp.up_proj.weight": (8, 4)},
    )


@pytest.fixture
def acme(registry: Registry, base: BaseModel) -> Tenant:
    """A tenant of the tier `shared`, with a base model to put adapters on."""
    registry.put_base_model(base)
    return registry.create_tenant("acme", "shared")


@pytest.fixture
def rival(registry: Registry) -> Tenant:
    return registry.create_tenant("rival", "shared")


@pytest.fixture
def make_revision() -> Callable[..., Revision]:
    """A revision of that weights and config text."""

    def make(weights: str = "weights", config: str = "config", *, number: int = 1) -> Revision:
        return Revision(
            number=number,
            digest=sha256(config + weights),
            config_blob=sha256(config),
            weights_blob=sha256(weights),
            size_bytes=5_000_000_000,
            rank=8,
            lora_alpha=12.5,
            target_modules=("q_proj", "v_proj"),
            warnings=("lora_alpha was not given: 12.5 is assumed",),
        )

    return make
