import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from adapter_sync.errors import (
    AdapterExistsError,
    AdapterLimitError,
    AdapterNotFoundError,
    BaseModelNotFoundError,
    InvalidNameError,
    RegistryReplacedError,
)
from adapter_sync.record import Adapter, AdapterStatus, BaseModel, Revision, Tenant
from adapter_sync.registry import Registry
from tests.desired import desired_of

MakeRevision = Callable[..., Revision]


def add(registry: Registry, tenant: Tenant, name: str, revision: Revision) -> Adapter:
    return registry.create_adapter(tenant=tenant, name=name, base_model="tiny", revision=revision)


def test_a_new_adapter_is_loading_and_comes_back_whole(
    registry: Registry, registry_url: str, acme: Tenant, make_revision: MakeRevision
) -> None:
    revision = make_revision()
    adapter = add(registry, acme, "finance", revision)
    assert re.fullmatch(r"adp_[0-9a-f]{20}", adapter.id)
    assert (adapter.status, adapter.revision) == (AdapterStatus.LOADING, revision)
    assert adapter.created_at.utcoffset() == timedelta(0)
    with closing(Registry.open(registry_url)) as other:
        assert other.adapter(acme.id, adapter.id) == adapter
        assert other.find_adapter(acme.id, "tiny", "finance") == adapter
        assert other.adapters(acme.id) == other.adapters() == [adapter]
        assert other.desired_adapters("tiny").adapters == (desired_of(adapter),)


def test_an_adapter_needs_a_base_model_and_a_good_name(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    with pytest.raises(BaseModelNotFoundError, match="tiny"):
        registry.create_adapter(
            tenant=acme, name="finance", base_model="gpt", revision=make_revision()
        )
    with pytest.raises(InvalidNameError, match="a:b"):
        add(registry, acme, "a:b", make_revision())
    assert registry.adapters() == []


def test_a_name_is_taken_once_for_each_tenant_and_base_model(
    registry: Registry, acme: Tenant, rival: Tenant, base: BaseModel, make_revision: MakeRevision
) -> None:
    registry.put_base_model(replace(base, name="other"))
    first = add(registry, acme, "finance", make_revision())
    with pytest.raises(AdapterExistsError, match=first.id):
        add(registry, acme, "finance", make_revision("more"))
    add(registry, rival, "finance", make_revision())
    registry.create_adapter(
        tenant=acme, name="finance", base_model="other", revision=make_revision()
    )
    assert len(registry.adapters()) == 3


def test_the_database_itself_refuses_a_second_live_adapter_of_a_name(
    registry: Registry, connection: Connection, acme: Tenant, make_revision: MakeRevision
) -> None:
    adapter = add(registry, acme, "finance", make_revision())
    copy = (
        "INSERT INTO adapters (id, status, tenant_id, base_model, name, revision_number, "
        "created_at, updated_at) SELECT 'adp_copy', :status, tenant_id, base_model, name, "
        "revision_number, created_at, updated_at FROM adapters"
    )
    with pytest.raises(IntegrityError, match=r"(?i)unique"):
        connection.execute(text(copy), {"status": "ready"})
    connection.execute(text(copy), {"status": "deleting"})
    assert registry.adapters() == [adapter]


def test_the_tier_s_limit_holds_and_deleting_ones_do_not_count(
    registry: Registry, acme: Tenant, rival: Tenant, make_revision: MakeRevision
) -> None:
    adapters = [add(registry, acme, f"a{number}", make_revision()) for number in range(20)]
    before = registry.change_counter()
    with pytest.raises(AdapterLimitError, match="'shared' allows 20"):
        add(registry, acme, "one-more", make_revision())
    assert registry.change_counter() == before
    assert len(registry.adapters(acme.id)) == 20
    add(registry, rival, "one-more", make_revision())
    registry.delete_adapter(acme.id, adapters[0].id)
    add(registry, acme, "one-more", make_revision())
    with pytest.raises(AdapterLimitError):
        add(registry, acme, "two-more", make_revision())


def test_a_larger_tier_has_more_room(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    big = registry.create_tenant("big", "reserved")
    for number in range(21):
        add(registry, big, f"a{number}", make_revision())
    assert len(registry.adapters(big.id)) == 21
    assert registry.adapters(acme.id) == []


def test_adapters_come_newest_first(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    for name in ("first", "second", "third"):
        add(registry, acme, name, make_revision())
    assert [adapter.name for adapter in registry.adapters()] == ["third", "second", "first"]


def test_another_tenant_s_adapter_can_t_be_seen_or_touched(
    registry: Registry, acme: Tenant, rival: Tenant, make_revision: MakeRevision
) -> None:
    adapter = add(registry, acme, "finance", make_revision())
    with pytest.raises(AdapterNotFoundError) as theirs:
        registry.adapter(rival.id, adapter.id)
    with pytest.raises(AdapterNotFoundError) as missing:
        registry.adapter(rival.id, "adp_0")
    assert str(theirs.value).replace(adapter.id, "adp_0") == str(missing.value)
    with pytest.raises(AdapterNotFoundError):
        registry.find_adapter(rival.id, "tiny", "finance")
    with pytest.raises(AdapterNotFoundError):
        registry.delete_adapter(rival.id, adapter.id)
    assert registry.adapters(rival.id) == []
    assert registry.adapter(acme.id, adapter.id) == adapter


def test_a_deleted_adapter_is_gone_for_everyone_but_the_reconciler(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    adapter = add(registry, acme, "finance", make_revision())
    before = registry.change_counter()
    deleting = registry.delete_adapter(acme.id, adapter.id)
    assert deleting == replace(
        adapter, status=AdapterStatus.DELETING, updated_at=deleting.updated_at
    )
    assert deleting.updated_at > adapter.updated_at
    assert registry.change_counter() > before
    assert registry.adapters() == registry.adapters(acme.id) == []
    assert registry.desired_adapters("tiny").adapters == (desired_of(deleting),)
    with pytest.raises(AdapterNotFoundError):
        registry.adapter(acme.id, adapter.id)
    with pytest.raises(AdapterNotFoundError):
        registry.find_adapter(acme.id, "tiny", "finance")
    with pytest.raises(AdapterNotFoundError):
        registry.delete_adapter(acme.id, adapter.id)


def test_a_deleted_adapter_s_name_is_free_at_once(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    old = add(registry, acme, "finance", make_revision())
    registry.delete_adapter(acme.id, old.id)
    new = add(registry, acme, "finance", make_revision())
    assert registry.find_adapter(acme.id, "tiny", "finance") == new
    registry.delete_adapter(acme.id, new.id)
    assert {adapter.id for adapter in registry.desired_adapters("tiny").adapters} == {
        old.id,
        new.id,
    }


def test_the_reconciler_sees_every_tenant_s_adapters_sorted_by_id(
    registry: Registry, acme: Tenant, rival: Tenant, base: BaseModel, make_revision: MakeRevision
) -> None:
    registry.put_base_model(replace(base, name="other"))
    registry.create_adapter(
        tenant=acme, name="elsewhere", base_model="other", revision=make_revision()
    )
    ids = [
        add(registry, tenant, name, make_revision()).id
        for tenant in (acme, rival)
        for name in ("one", "two", "three")
    ]
    assert [adapter.id for adapter in registry.desired_adapters("tiny").adapters] == sorted(ids)


def test_a_status_with_its_reason_is_kept_and_counted_once(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    adapter = add(registry, acme, "finance", make_revision())
    counters = [registry.change_counter()]
    for _ in range(2):
        changed = registry.set_adapter_status(
            adapter.id,
            adapter.revision.digest,
            AdapterStatus.FAILED,
            error_code="engine_refused",
            error_message="the engine said no",
        )
        counters.append(registry.change_counter())
        assert changed is (len(counters) == 2)
    assert counters[1] > counters[0]
    assert counters[2] == counters[1]
    failed = registry.adapter(acme.id, adapter.id)
    assert (failed.status, failed.error_code) == (AdapterStatus.FAILED, "engine_refused")
    assert failed.error_message == "the engine said no"
    assert failed.updated_at > adapter.updated_at
    assert registry.set_adapter_status(adapter.id, adapter.revision.digest, AdapterStatus.READY)
    ready = registry.adapter(acme.id, adapter.id)
    assert (ready.status, ready.error_code, ready.error_message) == (
        AdapterStatus.READY,
        None,
        None,
    )


def test_a_status_of_another_content_or_of_a_deleting_adapter_is_ignored(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    adapter = add(registry, acme, "finance", make_revision())
    outdated = make_revision("other weights").digest
    assert not registry.set_adapter_status(adapter.id, outdated, AdapterStatus.READY)
    assert registry.adapters() == [adapter]
    registry.delete_adapter(acme.id, adapter.id)
    before = registry.change_counter()
    digest = adapter.revision.digest
    assert not registry.set_adapter_status(adapter.id, digest, AdapterStatus.READY)
    assert not registry.set_adapter_status("adp_0", digest, AdapterStatus.READY)
    assert registry.desired_adapters("tiny").adapters[0].status is AdapterStatus.DELETING
    assert registry.change_counter() == before


def test_forgetting_an_adapter_names_only_the_blobs_nobody_else_uses(
    registry: Registry, acme: Tenant, rival: Tenant, make_revision: MakeRevision
) -> None:
    mine = add(registry, acme, "finance", make_revision("my weights", "shared config"))
    theirs = add(registry, rival, "finance", make_revision("their weights", "shared config"))
    registry.delete_adapter(acme.id, mine.id)
    assert registry.unused_blobs([mine.revision.weights_blob]) == []
    before = registry.change_counter()
    assert registry.forget_adapter(mine.id) == [mine.revision.weights_blob]
    assert registry.change_counter() > before
    assert registry.unused_blobs([mine.revision.weights_blob]) == [mine.revision.weights_blob]
    assert registry.unused_blobs([theirs.revision.config_blob]) == []
    assert registry.desired_adapters("tiny").adapters == (desired_of(theirs),)
    registry.delete_adapter(rival.id, theirs.id)
    assert registry.forget_adapter(theirs.id) == sorted(
        [theirs.revision.config_blob, theirs.revision.weights_blob]
    )


def test_only_a_deleting_adapter_can_be_forgotten(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    adapter = add(registry, acme, "finance", make_revision())
    before = registry.change_counter()
    assert registry.forget_adapter(adapter.id) == []
    assert registry.forget_adapter("adp_0") == []
    assert registry.adapters() == [adapter]
    assert registry.change_counter() == before


def test_a_database_that_was_lost_is_told_and_does_not_come_back_empty(
    registry: Registry, registry_file: Path
) -> None:
    registry.change_counter()
    registry_file.unlink()
    for _ in range(2):
        with pytest.raises(RegistryReplacedError):
            registry.change_counter()
    assert not registry_file.exists()


def test_a_database_in_whose_place_is_another_one_is_told(
    registry: Registry, registry_file: Path
) -> None:
    registry_file.unlink()
    # It may well get the same inode, if nobody holds on to that.
    registry_file.write_bytes(b"")
    with pytest.raises(RegistryReplacedError):
        registry.tenants()


def test_an_id_that_no_database_can_hold_is_not_found(registry: Registry, acme: Tenant) -> None:
    with pytest.raises(AdapterNotFoundError):
        registry.adapter(acme.id, "adp_\0")
