"""Fetches in the registry: one a name, claimed once, gone when their adapter is here."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from adapter_sync.errors import (
    AdapterExistsError,
    AdapterLimitError,
    AdapterNotFoundError,
    BaseModelNotFoundError,
    FetchGoneError,
    FetchInProgressError,
    InvalidNameError,
    PreconditionFailedError,
    TenantHasAdaptersError,
)
from adapter_sync.fetches import Fetch, FetchStage, HubRepo, PinnedRepo
from adapter_sync.record import Adapter, AliasTarget, Overwrite, Revision, Tenant
from adapter_sync.registry import Registry

PINNED = PinnedRepo(
    source=HubRepo(repo="org/lora", revision="v1", subfolder="last"),
    commit="0" * 40,
    weights_bytes=3_000_000_000,
    config_bytes=500,
)
MakeRevision = Callable[..., Revision]


def start(
    registry: Registry,
    tenant: Tenant,
    name: str = "finance",
    *,
    base_model: str = "tiny",
    overwrite: Overwrite | None = None,
    sealed_token: str | None = None,
) -> Fetch:
    return registry.create_fetch(
        tenant=tenant,
        name=name,
        base_model=base_model,
        pinned=PINNED,
        overwrite=overwrite or Overwrite(),
        sealed_token=sealed_token,
    )


def test_a_fetch_is_kept_as_it_was_asked_for(registry: Registry, acme: Tenant) -> None:
    fetch = start(registry, acme)
    assert registry.fetch(acme.id, fetch.id) == fetch
    assert (fetch.stage, fetch.bytes_done, fetch.pinned) == (FetchStage.PENDING, 0, PINNED)
    assert registry.fetches(acme.id) == [fetch]


def test_another_tenant_sees_nothing_of_it(registry: Registry, acme: Tenant, rival: Tenant) -> None:
    fetch = start(registry, acme)
    assert registry.fetch(rival.id, fetch.id) is None
    assert registry.fetches(rival.id) == []
    with pytest.raises(AdapterNotFoundError):
        registry.delete_adapter(rival.id, fetch.id)
    assert start(registry, rival).id != fetch.id


def test_the_oldest_is_claimed_first_and_only_once(registry: Registry, acme: Tenant) -> None:
    first = start(registry, acme, "first", sealed_token="sealed")
    second = start(registry, acme, "second")
    claimed = registry.claim_fetch()
    assert claimed is not None
    assert (claimed.fetch.id, claimed.sealed_token) == (first.id, "sealed")
    claimed = registry.claim_fetch()
    assert claimed is not None
    assert claimed.fetch.id == second.id
    assert registry.claim_fetch() is None
    assert not registry.has_pending_fetch()


def test_what_a_killed_process_had_claimed_is_pending_again(
    registry: Registry, acme: Tenant
) -> None:
    fetch = start(registry, acme)
    registry.claim_fetch()
    registry.set_fetch_progress(fetch.id, FetchStage.VALIDATING, 7)
    registry.reopen_fetches()
    reopened = registry.fetch(acme.id, fetch.id)
    assert reopened is not None
    assert (reopened.stage, reopened.bytes_done) == (FetchStage.PENDING, 0)


def test_a_fetch_becomes_its_adapter_with_the_same_id(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    fetch = start(registry, acme)
    adapter = registry.create_adapter(
        tenant=acme,
        name="finance",
        base_model="tiny",
        revision=make_revision(),
        fetched_id=fetch.id,
    )
    assert adapter.id == fetch.id
    assert registry.fetch(acme.id, fetch.id) is None


def test_its_name_is_found_all_the_while_a_fetch_becomes_its_adapter(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    names = [f"a{number}" for number in range(15)]
    fetches = [start(registry, acme, name) for name in names]
    found: list[Adapter | Fetch | None] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            for name in names:
                try:
                    found.append(registry.find_adapter_or_fetch(acme.id, "tiny", name))
                except AdapterNotFoundError:
                    found.append(None)

    with ThreadPoolExecutor() as threads:
        looking = [threads.submit(look) for _ in range(3)]
        for fetch in fetches:
            registry.create_adapter(
                tenant=acme,
                name=fetch.name,
                base_model="tiny",
                revision=make_revision(),
                fetched_id=fetch.id,
            )
        ended.set()
        for each in looking:
            each.result()
    assert {type(each) for each in found} >= {Fetch}
    assert None not in found
    assert isinstance(registry.find_adapter_or_fetch(acme.id, "tiny", "a0"), Adapter)


def test_a_fetch_that_was_deleted_becomes_nothing(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    fetch = start(registry, acme)
    registry.claim_fetch()
    registry.delete_adapter(acme.id, fetch.id)
    with pytest.raises(FetchGoneError):
        registry.set_fetch_progress(fetch.id, FetchStage.FETCHING, 1)
    with pytest.raises(FetchGoneError):
        registry.create_adapter(
            tenant=acme,
            name="finance",
            base_model="tiny",
            revision=make_revision(),
            fetched_id=fetch.id,
        )
    assert registry.adapters() == []


def test_a_failed_fetch_says_why_forgets_its_token_and_gives_way(
    registry: Registry, acme: Tenant
) -> None:
    fetch = start(registry, acme, sealed_token="sealed")
    with pytest.raises(FetchInProgressError, match=fetch.id):
        start(registry, acme)
    registry.fail_fetch(fetch.id, code="invalid_adapter", message="no lora_A")
    failed = registry.fetch(acme.id, fetch.id)
    assert failed is not None
    assert (failed.stage, failed.error_code) == (FetchStage.FAILED, "invalid_adapter")
    assert registry.claim_fetch() is None
    again = start(registry, acme)
    assert registry.fetches(acme.id) == [again]
    claimed = registry.claim_fetch()
    assert claimed is not None
    assert claimed.sealed_token is None


def test_a_new_revision_is_fetched_only_when_told_to_replace(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    adapter = registry.create_adapter(
        tenant=acme, name="finance", base_model="tiny", revision=make_revision()
    )
    with pytest.raises(AdapterExistsError):
        start(registry, acme)
    with pytest.raises(PreconditionFailedError):
        start(registry, acme, overwrite=Overwrite(replace=True, if_match=frozenset({'"x"'})))
    overwrite = Overwrite(replace=True, if_match=frozenset({adapter.etag}))
    fetch = start(registry, acme, overwrite=overwrite)
    assert fetch.id == adapter.id
    claimed = registry.claim_fetch()
    assert claimed is not None
    assert claimed.overwrite == overwrite
    replaced = registry.create_adapter(
        tenant=acme,
        name="finance",
        base_model="tiny",
        revision=make_revision("other"),
        overwrite=overwrite,
        fetched_id=fetch.id,
    )
    assert (replaced.id, replaced.revision.number) == (adapter.id, 2)


def test_a_fetch_does_not_end_as_a_revision_of_an_adapter_that_came_meanwhile(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    fetch = start(registry, acme, overwrite=Overwrite(replace=True))
    uploaded = registry.create_adapter(
        tenant=acme, name="finance", base_model="tiny", revision=make_revision()
    )
    with pytest.raises(AdapterExistsError, match=uploaded.id):
        registry.create_adapter(
            tenant=acme,
            name="finance",
            base_model="tiny",
            revision=make_revision("other"),
            overwrite=Overwrite(replace=True),
            fetched_id=fetch.id,
        )
    assert registry.adapter(acme.id, uploaded.id).revision.number == 1
    assert registry.fetch(acme.id, fetch.id) == fetch


def test_an_upload_makes_up_for_a_failed_fetch_of_its_name(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    fetch = start(registry, acme)
    registry.fail_fetch(fetch.id, code="hub_unavailable", message="away")
    registry.create_adapter(
        tenant=acme, name="finance", base_model="tiny", revision=make_revision()
    )
    assert registry.fetches(acme.id) == []


def test_a_tenant_with_many_fetches_holds_up_no_other(
    registry: Registry, acme: Tenant, rival: Tenant
) -> None:
    first, _ = (start(registry, acme, f"n{number}") for number in range(2))
    theirs = start(registry, rival)
    claimed = [registry.claim_fetch() for _ in range(2)]
    assert [each and each.fetch.id for each in claimed] == [first.id, theirs.id]


def test_what_is_on_its_way_counts_for_the_tiers_limit(registry: Registry, acme: Tenant) -> None:
    fetches = [start(registry, acme, f"n{number}") for number in range(20)]
    with pytest.raises(AdapterLimitError):
        start(registry, acme, "more")
    registry.fail_fetch(fetches[0].id, code=None, message="away")
    assert start(registry, acme, "more")


def test_a_fetch_has_no_state_that_could_match(registry: Registry, acme: Tenant) -> None:
    fetch = start(registry, acme)
    with pytest.raises(PreconditionFailedError):
        registry.delete_adapter(acme.id, fetch.id, if_match=frozenset({"*"}))
    assert registry.fetches(acme.id) == [fetch]


def test_a_tenant_goes_with_its_fetches_and_aliases_only_when_told(
    registry: Registry, acme: Tenant
) -> None:
    start(registry, acme)
    registry.put_alias(acme.id, "mine", [AliasTarget(base_model="tiny", adapter_name=None)])
    with pytest.raises(TenantHasAdaptersError):
        registry.delete_tenant(acme.name)
    registry.delete_tenant(acme.name, with_adapters=True)
    assert (registry.fetches(acme.id), registry.aliases(acme.id)) == ([], [])
    actions = [entry.action for entry in registry.audit().items]
    assert {"fetch.deleted", "alias.deleted", "tenant.deleted"} <= set(actions)


def test_deleting_an_adapter_ends_the_fetch_of_its_next_revision(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    adapter = registry.create_adapter(
        tenant=acme, name="finance", base_model="tiny", revision=make_revision()
    )
    start(registry, acme, overwrite=Overwrite(replace=True))
    registry.delete_adapter(acme.id, adapter.id)
    assert registry.fetches(acme.id) == []


def test_what_an_upload_may_not_a_fetch_may_not(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    with pytest.raises(InvalidNameError):
        start(registry, acme, "a:b")
    with pytest.raises(BaseModelNotFoundError):
        start(registry, acme, base_model="other")
    for number in range(20):
        registry.create_adapter(
            tenant=acme, name=f"n{number}", base_model="tiny", revision=make_revision()
        )
    with pytest.raises(AdapterLimitError):
        start(registry, acme)
