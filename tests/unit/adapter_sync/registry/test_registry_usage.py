"""Usage in the database: added up, each batch once, and read back in groups."""

import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DatabaseError

from adapter_sync.record import Revision, Tenant, Usage, UsageBatch, UsageField, UsageKey
from adapter_sync.registry import Registry

DAY = date(2026, 3, 1)


def key(
    tenant: str = "ten_1",
    *,
    day: date = DAY,
    model: str = "tiny",
    adapter: str | None = None,
    key_id: str | None = None,
) -> UsageKey:
    return UsageKey(
        day=day, tenant_id=tenant, key_id=key_id, requested_model=model, adapter_id=adapter
    )


def usage(requests: int, prompt_tokens: int = 0, completion_tokens: int = 0) -> Usage:
    return Usage(
        requests=requests, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
    )


def batch(
    number: int,
    used: dict[UsageKey, Usage],
    *,
    writer: str = "w1",
    adapters: dict[str, datetime] | None = None,
) -> UsageBatch:
    return UsageBatch(writer=writer, number=number, used=used, adapters_used_at=adapters or {})


def total(registry: Registry, tenant: str = "ten_1") -> Usage | None:
    buckets = registry.usage(tenant, first=date.min, last=date.max, group_by=[UsageField.DAY])
    return buckets[0].usage if buckets else None


def test_what_comes_later_is_added_to_what_is_there(registry: Registry) -> None:
    assert registry.add_usage(batch(1, {key(): usage(1, 10, 5)}))
    assert registry.add_usage(batch(2, {key(): usage(2, 3, 4)}))
    assert registry.add_usage(batch(1, {key(): usage(1, 1, 1)}, writer="w2"))
    assert total(registry) == usage(4, 14, 10)


def test_a_batch_that_comes_again_adds_nothing(registry: Registry) -> None:
    first, second = batch(1, {key(): usage(1, 10, 5)}), batch(2, {key(): usage(1, 1, 1)})
    assert [registry.add_usage(each) for each in (first, first, second, second, first)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert total(registry) == usage(2, 11, 6)


def test_a_batch_is_added_whole_or_not_at_all(registry: Registry, registry_file: Path) -> None:
    bad = batch(1, {key(): usage(1), key(model="bad"): usage(1)})
    with closing(sqlite3.connect(registry_file, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON usage WHEN NEW.requested_model = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'no room'); END"
        )
        with pytest.raises(DatabaseError, match="no room"):
            registry.add_usage(bad)
        assert total(registry) is None
        connection.execute("DROP TRIGGER fault")
    assert registry.add_usage(bad)
    assert total(registry) == usage(2)


def test_writers_at_the_same_time_lose_nothing(registry: Registry) -> None:
    def write(writer: int) -> None:
        for number in range(1, 11):
            one = batch(number, {key(): usage(1, 2, 3)}, writer=f"w{writer}")
            # Twice, as after a commit whose answer was lost.
            registry.add_usage(one)
            registry.add_usage(one)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    assert total(registry) == usage(80, 160, 240)


def test_large_numbers_are_kept(registry: Registry) -> None:
    for number in (1, 2):
        registry.add_usage(batch(number, {key(): usage(1, 2**40, 2**40)}))
    assert total(registry) == usage(2, 2**41, 2**41)


def test_usage_is_told_apart_by_what_it_is_grouped_by(registry: Registry) -> None:
    registry.add_usage(
        batch(
            1,
            {
                key(): usage(1),
                key(model="tiny:a", adapter="adp_1", key_id="k1"): usage(2),
                key(model="tiny:a", adapter="adp_1", key_id="k2"): usage(4),
                key(model="tiny:a", adapter="adp_2", key_id="k2"): usage(8),
                key(day=DAY + timedelta(1), key_id="k1"): usage(16),
                key("ten_2"): usage(1000),
            },
        )
    )

    def grouped(*fields: UsageField) -> dict[tuple[object, ...], int]:
        buckets = registry.usage("ten_1", first=DAY, last=DAY + timedelta(1), group_by=fields)
        return {tuple(each.group.values()): each.usage.requests for each in buckets}

    later = DAY + timedelta(1)
    assert grouped(UsageField.DAY) == {(DAY,): 15, (later,): 16}
    assert grouped(UsageField.MODEL) == {("tiny",): 17, ("tiny:a",): 14}
    assert grouped(UsageField.ADAPTER) == {(None,): 17, ("adp_1",): 6, ("adp_2",): 8}
    assert grouped(UsageField.KEY) == {(None,): 1, ("k1",): 18, ("k2",): 12}
    assert grouped(UsageField.MODEL, UsageField.DAY) == {
        (DAY, "tiny"): 1,
        (DAY, "tiny:a"): 14,
        (later, "tiny"): 16,
    }


def test_the_first_and_the_last_day_are_included_and_no_others(registry: Registry) -> None:
    days = [DAY + timedelta(number) for number in range(5)]
    registry.add_usage(batch(1, {key(day=day): usage(1) for day in days}))
    told = registry.usage("ten_1", first=days[1], last=days[3], group_by=[UsageField.DAY])
    assert [bucket.group[UsageField.DAY] for bucket in told] == days[1:4]


def test_an_adapters_last_use_is_kept_and_never_goes_back(
    registry: Registry, acme: Tenant, make_revision: Callable[..., Revision]
) -> None:
    adapter = registry.create_adapter(
        tenant=acme, name="finance", base_model="tiny", revision=make_revision()
    )
    assert adapter.last_used_at is None
    before = registry.change_counter()
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for number, used_at in enumerate([at, at - timedelta(hours=1)], start=1):
        registry.add_usage(
            batch(number, {key(): usage(1)}, adapters={adapter.id: used_at, "adp_gone": used_at})
        )
    assert registry.adapter(acme.id, adapter.id).last_used_at == at
    # Nothing that adapter_sync would have to look at.
    assert registry.change_counter() == before


def test_a_new_writer_clears_away_those_long_gone(
    registry: Registry, connection: Connection
) -> None:
    registry.add_usage(batch(1, {}, writer="old"))
    registry.add_usage(batch(1, {}, writer="recent"))
    long_ago = "UPDATE usage_writers SET written_at = '2020-01-01' WHERE id = 'old'"
    connection.execute(text(long_ago))
    registry.add_usage(batch(1, {}, writer="new"))
    ids = connection.scalars(text("SELECT id FROM usage_writers ORDER BY id"))
    assert list(ids) == ["new", "recent"]
