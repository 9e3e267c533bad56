"""The life of keys and tenants: ends, last use, tiers, deletion."""

import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError

from adapter_sync.errors import (
    InvalidApiKeyError,
    InvalidNameError,
    KeyNotFoundError,
    LoraServerError,
    TenantHasAdaptersError,
    TenantNotFoundError,
    UnknownCursorError,
    UnknownTierError,
)
from adapter_sync.record import Adapter, AdapterStatus, Revision, Tenant
from adapter_sync.registry import AdapterFilter, Registry
from tests.desired import desired_of

Make = Callable[..., Revision]


def put(registry: Registry, tenant: Tenant, revision: Revision, name: str = "a") -> Adapter:
    return registry.create_adapter(tenant=tenant, name=name, base_model="tiny", revision=revision)


def refusal(registry: Registry, key: str) -> str:
    with pytest.raises(InvalidApiKeyError) as refused:
        registry.caller(key)
    return str(refused.value)


def test_a_new_key_is_known_by_all_but_its_secret(registry: Registry, acme: Tenant) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    issued = registry.issue_key("acme", name="laptop", expires_at=until)
    key = issued.key
    assert issued.text.split("-", 2)[1] == key.id
    assert (key.tenant_id, key.name, key.expires_at) == (acme.id, "laptop", until)
    assert (key.revoked_at, key.last_used_at) == (None, None)
    assert registry.keys("acme").items == (key,)
    assert registry.caller(issued.text).key == key
    assert registry.caller(issued.text).actor == f"key:{key.id}"
    assert issued.text not in repr(issued)


def test_a_key_that_is_over_is_refused_in_the_words_for_a_wrong_one(
    registry: Registry, acme: Tenant, rival: Tenant
) -> None:
    wrong = refusal(registry, "pk-wrong")
    expired = registry.issue_key(acme.name, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    revoked, orphan = registry.issue_key(acme.name), registry.issue_key(rival.name)
    registry.revoke_key(revoked.key.id)
    registry.delete_tenant(rival.name)
    assert [refusal(registry, each.text) for each in (expired, revoked, orphan)] == [wrong] * 3


@pytest.mark.usefixtures("acme")
def test_a_key_works_until_the_moment_of_its_end(registry: Registry) -> None:
    end = datetime.now(UTC) + timedelta(seconds=0.5)
    issued = registry.issue_key("acme", expires_at=end)
    assert registry.caller(issued.text).key == issued.key
    time.sleep(0.55)
    refusal(registry, issued.text)


def test_a_revocation_is_seen_by_another_process_at_once(
    registry: Registry, registry_url: str, acme: Tenant
) -> None:
    issued = registry.issue_key(acme.name)
    with closing(Registry.open(registry_url)) as other:
        assert other.caller(issued.text).tenant == acme
        registry.revoke_key(issued.key.id)
        refusal(other, issued.text)


@pytest.mark.usefixtures("acme")
def test_a_key_is_revoked_once(registry: Registry) -> None:
    issued = registry.issue_key("acme")
    first = registry.revoke_key(issued.key.id)
    assert first.revoked_at is not None
    assert registry.revoke_key(issued.key.id) == first
    with pytest.raises(KeyNotFoundError, match="nothing"):
        registry.revoke_key("nothing")


@pytest.mark.parametrize("name", ["", " ", "x ", "a\nb", "a\x00", "x" * 65, "\ud800"])
def test_a_key_of_a_bad_name_is_not_made(registry: Registry, acme: Tenant, name: str) -> None:
    with pytest.raises(InvalidNameError):
        registry.issue_key(acme.name, name=name)
    assert registry.keys(acme.name).items == ()


def test_keys_come_in_pages_the_newest_first(
    registry: Registry, acme: Tenant, rival: Tenant
) -> None:
    made = [registry.issue_key(acme.name).key for _ in range(5)]
    registry.issue_key(rival.name)
    made.reverse()
    first = registry.keys(acme.name, limit=2)
    second = registry.keys(acme.name, limit=2, after=first.items[-1].id)
    last = registry.keys(acme.name, limit=2, after=second.items[-1].id)
    assert [*first.items, *second.items, *last.items] == made
    assert (first.has_more, second.has_more, last.has_more) == (True, True, False)
    assert registry.keys(acme.name, limit=5).has_more is False
    with pytest.raises(UnknownCursorError, match="'x'"):
        registry.keys(acme.name, limit=2, after="x")


def test_a_use_is_written_at_most_once_a_minute(registry: Registry, acme: Tenant) -> None:
    key, other = registry.issue_key(acme.name), registry.issue_key(acme.name)

    def last_used_at() -> datetime | None:
        return registry.caller(key.text).key.last_used_at

    began = datetime.now(UTC)
    registry.note_key_uses({key.key.id}, began)
    assert last_used_at() == began
    registry.note_key_uses({key.key.id, "nobodys"}, began + timedelta(seconds=59))
    assert last_used_at() == began
    registry.note_key_uses({key.key.id}, began + timedelta(seconds=60))
    assert last_used_at() == began + timedelta(seconds=60)
    assert registry.caller(other.text).key.last_used_at is None


def test_a_use_is_stale_after_a_minute(registry: Registry, acme: Tenant) -> None:
    issued, now = registry.issue_key(acme.name), datetime.now(UTC)
    assert issued.key.has_stale_last_use(now)
    registry.note_key_uses({issued.key.id}, now)
    key = registry.caller(issued.text).key
    assert not key.has_stale_last_use(now + timedelta(seconds=59))
    assert key.has_stale_last_use(now + timedelta(seconds=60))


def test_a_tier_changes_what_a_tenant_may(
    registry: Registry, acme: Tenant, make_revision: Make
) -> None:
    for number in range(20):
        put(registry, acme, make_revision(), f"a{number}")
    key = registry.create_key("acme")
    changed = registry.set_tier("acme", "reserved")
    assert changed == registry.caller(key).tenant == registry.tenant("acme")
    assert (changed.id, changed.tier) == (acme.id, "reserved")
    put(registry, changed, make_revision(), "one-more")
    with pytest.raises(UnknownTierError):
        registry.set_tier("acme", "golden")
    with pytest.raises(TenantNotFoundError):
        registry.set_tier("nobody", "shared")
    assert registry.tenant("acme").tier == "reserved"


def test_a_tenant_with_adapters_stays(
    registry: Registry, acme: Tenant, make_revision: Make
) -> None:
    adapter, key = put(registry, acme, make_revision()), registry.create_key("acme")
    before = registry.audit()
    with pytest.raises(TenantHasAdaptersError, match="'acme' has adapters: 1"):
        registry.delete_tenant("acme")
    assert registry.caller(key).tenant == acme
    assert registry.adapters(acme.id) == [adapter]
    assert registry.audit() == before


def test_a_deleted_tenant_s_adapters_drain_and_its_name_is_free(
    registry: Registry, acme: Tenant, make_revision: Make
) -> None:
    adapter, key = put(registry, acme, make_revision()), registry.create_key("acme")
    changes = registry.change_counter()
    assert registry.delete_tenant("acme", with_adapters=True) == acme
    assert registry.change_counter() > changes
    refusal(registry, key)
    assert registry.tenants() == []
    with pytest.raises(TenantNotFoundError, match="'acme'"):
        registry.delete_tenant("acme")
    [draining] = registry.desired_adapters("tiny").adapters
    assert (draining.id, draining.status) == (adapter.id, AdapterStatus.DELETING)

    successor = registry.create_tenant("acme", "shared")
    assert successor.id != acme.id
    assert registry.adapters(successor.id) == []
    assert registry.keys("acme").items == ()
    refusal(registry, key)
    mine = put(registry, successor, make_revision("other"))
    assert registry.forget_adapter(adapter.id)
    assert registry.desired_adapters("tiny").adapters == (desired_of(mine),)


def test_deleted_tenants_of_one_name_may_be_many(registry: Registry) -> None:
    for _ in range(3):
        registry.create_tenant("acme", "shared")
        registry.delete_tenant("acme")
    assert registry.tenants() == []
    assert [entry.tenant for entry in registry.audit().items] == ["acme"] * 6


def test_an_upload_that_ends_after_its_tenant_makes_no_adapter(
    registry: Registry, acme: Tenant, make_revision: Make
) -> None:
    registry.delete_tenant("acme")
    registry.create_tenant("acme", "shared")
    with pytest.raises(TenantNotFoundError):
        put(registry, acme, make_revision())
    assert registry.desired_adapters("tiny").adapters == ()


def test_a_deleted_tenant_s_key_is_not_found(registry: Registry, acme: Tenant) -> None:
    issued = registry.issue_key(acme.name)
    registry.delete_tenant(acme.name)
    with pytest.raises(KeyNotFoundError):
        registry.revoke_key(issued.key.id)


def test_all_adapters_are_found_by_tenant_base_model_and_status(
    registry: Registry, acme: Tenant, rival: Tenant, make_revision: Make
) -> None:
    mine, theirs = put(registry, acme, make_revision()), put(registry, rival, make_revision())
    ready = put(registry, acme, make_revision(), "ready")
    gone = put(registry, acme, make_revision(), "gone")
    registry.set_adapter_status(ready.id, ready.revision.digest, AdapterStatus.READY)
    registry.delete_adapter(acme.id, gone.id)

    def ids(**where: object) -> list[str]:
        page = registry.every_adapter_page(AdapterFilter(**where), limit=10)  # type: ignore[arg-type]
        return [adapter.id for adapter in page.items]

    assert ids() == [ready.id, theirs.id, mine.id]
    assert ids(tenant_id=acme.id) == [ready.id, mine.id]
    assert ids(base_model="tiny", status=AdapterStatus.READY) == [ready.id]
    assert ids(status=AdapterStatus.DELETING) == [gone.id]
    assert ids(base_model="other") == []
    page = registry.every_adapter_page(AdapterFilter(), limit=1, after=gone.id)
    assert ([adapter.id for adapter in page.items], page.has_more) == ([ready.id], True)


def test_what_changed_is_in_the_audit_with_who_changed_it(
    registry: Registry, acme: Tenant, make_revision: Make
) -> None:
    admin, caller = registry.acting_as("admin"), registry.acting_as("key:1")
    key = admin.issue_key("acme", name="laptop").key
    adapter = put(caller, acme, make_revision())
    caller.delete_adapter(acme.id, adapter.id)
    admin.set_tier("acme", "reserved")
    admin.set_tier("acme", "reserved")
    admin.revoke_key(key.id)
    admin.revoke_key(key.id)
    admin.delete_tenant("acme")
    entries = registry.audit().items
    assert [entry.id for entry in entries] == sorted((e.id for e in entries), reverse=True)
    assert [(e.actor, e.action, e.tenant, e.object_id) for e in reversed(entries)] == [
        ("system", "tenant.created", "acme", acme.id),
        ("admin", "key.created", "acme", key.id),
        ("key:1", "adapter.created", "acme", adapter.id),
        ("key:1", "adapter.deleted", "acme", adapter.id),
        ("admin", "tenant.tier_changed", "acme", acme.id),
        ("admin", "key.revoked", "acme", key.id),
        ("admin", "tenant.deleted", "acme", acme.id),
    ]
    assert all(entry.details["tenant_id"] == acme.id for entry in entries)
    assert entries[2].details == {"tenant_id": acme.id, "tier": "reserved", "was": "shared"}
    assert entries[3].details["model"] == "tiny:a"
    assert entries[5].details["name"] == "laptop"
    assert abs(datetime.now(UTC) - entries[0].at) < timedelta(minutes=1)


def test_what_was_refused_is_not_in_the_audit(
    registry: Registry, acme: Tenant, rival: Tenant, make_revision: Make
) -> None:
    adapter = put(registry, acme, make_revision())
    before = registry.audit()
    for refused in (
        lambda: registry.create_tenant("acme", "shared"),
        lambda: registry.issue_key("acme", name="\n"),
        lambda: put(registry, acme, make_revision()),
        lambda: registry.delete_adapter(rival.id, adapter.id),
        lambda: registry.delete_any_adapter("adp_0"),
    ):
        with pytest.raises(LoraServerError):
            refused()
    assert registry.audit() == before


def test_the_audit_comes_in_pages(registry: Registry) -> None:
    for number in range(5):
        registry.create_tenant(f"t{number}", "shared")
    first = registry.audit(limit=3)
    second = registry.audit(limit=3, before=first.items[-1].id)
    assert [entry.tenant for entry in first.items + second.items] == ["t4", "t3", "t2", "t1", "t0"]
    assert (first.has_more, second.has_more) == (True, False)


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit", "DELETE FROM audit WHERE id = 1"],
)
def test_the_database_itself_refuses_to_change_the_audit(
    registry: Registry, connection: Connection, statement: str
) -> None:
    registry.create_tenant("acme", "shared")
    with pytest.raises(DatabaseError, match="append-only"):
        connection.execute(text(statement))
    assert [entry.actor for entry in registry.audit().items] == ["system"]


def test_no_secret_is_in_the_audit(registry: Registry, connection: Connection) -> None:
    registry.create_tenant("acme", "shared")
    issued = registry.issue_key("acme")
    registry.revoke_key(issued.key.id)
    written = repr(connection.execute(text("SELECT * FROM audit")).fetchall())
    stored = str(connection.scalar(text("SELECT key_sha256 FROM api_keys")))
    assert issued.key.id in written
    assert issued.text.split("-", 2)[2] not in written
    assert stored not in written
