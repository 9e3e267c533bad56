"""A tenant's adapters, a page at a time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from sqlalchemy import create_engine, update

from adapter_sync.errors import AdapterNotFoundError
from adapter_sync.record import Adapter, AdapterStatus, BaseModel, Revision, Tenant
from adapter_sync.registry import AdapterQuery, Registry
from adapter_sync.registry.tables import adapters

MakeRevision = Callable[..., Revision]


@pytest.fixture
def seven(registry: Registry, acme: Tenant, make_revision: MakeRevision) -> list[Adapter]:
    """The tenant's adapters, the newest first."""
    return [
        registry.create_adapter(
            tenant=acme, name=f"a{number}", base_model="tiny", revision=make_revision()
        )
        for number in range(7)
    ][::-1]


def pages(registry: Registry, tenant: Tenant, query: AdapterQuery) -> list[list[str]]:
    """The names on all pages, followed to the end."""
    found = []
    while True:
        page = registry.adapter_page(tenant.id, query)
        found.append([adapter.name for adapter in page.items])
        if not page.has_more:
            return found
        query = replace(query, after=page.items[-1].id)


@pytest.mark.usefixtures("seven")
def test_pages_follow_one_another_in_both_orders(registry: Registry, acme: Tenant) -> None:
    assert pages(registry, acme, AdapterQuery(limit=3)) == [
        ["a6", "a5", "a4"],
        ["a3", "a2", "a1"],
        ["a0"],
    ]
    assert pages(registry, acme, AdapterQuery(limit=4, oldest_first=True)) == [
        ["a0", "a1", "a2", "a3"],
        ["a4", "a5", "a6"],
    ]


@pytest.mark.usefixtures("seven")
def test_a_page_that_just_fits_has_no_more_behind_it(registry: Registry, acme: Tenant) -> None:
    assert len(pages(registry, acme, AdapterQuery(limit=7))) == 1
    assert len(pages(registry, acme, AdapterQuery(limit=6))) == 2


@pytest.mark.parametrize("oldest_first", [False, True])
def test_adapters_of_the_same_moment_are_each_listed_once(
    registry: Registry,
    registry_url: str,
    acme: Tenant,
    seven: list[Adapter],
    *,
    oldest_first: bool,
) -> None:
    engine = create_engine(registry_url)
    with engine.begin() as connection:
        connection.execute(update(adapters).values(created_at=datetime(2026, 1, 1, tzinfo=UTC)))
    engine.dispose()
    found = pages(registry, acme, AdapterQuery(limit=2, oldest_first=oldest_first))
    assert sorted(name for page in found for name in page) == sorted(one.name for one in seven)


def test_a_page_is_of_one_base_model_or_status_if_asked_for(
    registry: Registry,
    acme: Tenant,
    base: BaseModel,
    seven: list[Adapter],
    make_revision: MakeRevision,
) -> None:
    registry.put_base_model(replace(base, name="other"))
    registry.create_adapter(tenant=acme, name="b", base_model="other", revision=make_revision())
    for adapter in seven[:4]:
        registry.set_adapter_status(adapter.id, adapter.revision.digest, AdapterStatus.READY)
    assert pages(registry, acme, AdapterQuery(limit=9, base_model="other")) == [["b"]]
    assert pages(registry, acme, AdapterQuery(limit=9, base_model="gone")) == [[]]
    ready = AdapterQuery(limit=3, status=AdapterStatus.READY)
    assert pages(registry, acme, ready) == [["a6", "a5", "a4"], ["a3"]]
    both = AdapterQuery(limit=9, base_model="tiny", status=AdapterStatus.LOADING)
    assert pages(registry, acme, both) == [["a2", "a1", "a0"]]


def test_a_page_neither_shows_nor_follows_what_is_deleted_or_another_tenant_s(
    registry: Registry,
    acme: Tenant,
    rival: Tenant,
    seven: list[Adapter],
    make_revision: MakeRevision,
) -> None:
    theirs = registry.create_adapter(
        tenant=rival, name="theirs", base_model="tiny", revision=make_revision()
    )
    registry.delete_adapter(acme.id, seven[3].id)
    assert pages(registry, acme, AdapterQuery(limit=9)) == [["a6", "a5", "a4", "a2", "a1", "a0"]]
    assert pages(registry, rival, AdapterQuery(limit=9)) == [["theirs"]]
    for after in (seven[3].id, theirs.id, "adp_nobodys", ""):
        with pytest.raises(AdapterNotFoundError, match=f"There is no adapter '{after}'"):
            registry.adapter_page(acme.id, AdapterQuery(limit=9, after=after))
