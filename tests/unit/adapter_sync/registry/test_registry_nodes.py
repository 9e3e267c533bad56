"""Nodes that announce themselves, and where they have the adapters."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from adapter_sync.record import (
    Adapter,
    AdapterStatus,
    BaseModel,
    Node,
    NodeBaseModel,
    Residency,
    Revision,
    Tenant,
)
from adapter_sync.registry import Registry

NOW = datetime.now(UTC)
GPU, CPU, DISK = Residency.GPU, Residency.CPU, Residency.DISK
MakeRevision = Callable[..., Revision]


def make_node(number: int, silent_for: timedelta = timedelta(0)) -> Node:
    base = NodeBaseModel(
        name="tiny", max_model_len=512, max_lora_rank=8, max_loras=4, lora_map_revision=number
    )
    return Node(
        id=f"nod_{number}",
        host=f"host-{number}",
        triton="127.0.0.1:8000",
        version="1.0",
        base_models=(base,),
        started_at=NOW,
        heartbeat_at=datetime.now(UTC) - silent_for,
    )


def note(registry: Registry, node: int, **held: Residency) -> None:
    registry.note_residencies(f"nod_{node}", "tiny", held)


@pytest.fixture
def ready(registry: Registry, acme: Tenant, make_revision: MakeRevision) -> Adapter:
    """An adapter that serves, and two nodes that may have it."""
    for number in (1, 2):
        registry.announce_node(make_node(number))
    adapter = registry.create_adapter(
        tenant=acme, name="finance", base_model="tiny", revision=make_revision()
    )
    registry.set_adapter_status(adapter.id, adapter.revision.digest, AdapterStatus.READY)
    return registry.adapter(acme.id, adapter.id)


def residency(registry: Registry, adapter: Adapter) -> Residency | None:
    return registry.adapter(adapter.tenant_id, adapter.id).residency


def test_a_node_is_listed_as_it_announced_itself_last(registry: Registry) -> None:
    first, second = make_node(1), make_node(2)
    for node in (second, first):
        registry.announce_node(node)
    assert registry.nodes() == [first, second]
    later = replace(first, heartbeat_at=NOW + timedelta(seconds=5), base_models=())
    registry.announce_node(later)
    assert registry.nodes() == [later, second]


def test_a_node_is_lost_after_half_a_minute_and_forgotten_after_a_week(
    registry: Registry,
) -> None:
    silent, gone = make_node(1, timedelta(seconds=31)), make_node(2, timedelta(days=8))
    registry.announce_node(gone)
    registry.announce_node(silent)
    assert registry.nodes() == [silent]
    assert silent.is_lost(datetime.now(UTC))
    assert not make_node(3, timedelta(seconds=20)).is_lost(datetime.now(UTC))


def test_an_adapter_is_nowhere_before_it_serves_and_on_disk_from_then_on(
    registry: Registry, acme: Tenant, ready: Adapter, make_revision: MakeRevision
) -> None:
    loading = registry.create_adapter(
        tenant=acme, name="legal", base_model="tiny", revision=make_revision("more")
    )
    assert residency(registry, loading) is None
    assert ready.residency is DISK


def test_of_all_nodes_the_nearest_residency_is_told(registry: Registry, ready: Adapter) -> None:
    note(registry, 1, **{ready.id: CPU})
    assert residency(registry, ready) is CPU
    note(registry, 2, **{ready.id: GPU})
    assert residency(registry, ready) is GPU
    assert registry.adapters()[0].residency is GPU
    note(registry, 2)
    assert residency(registry, ready) is CPU
    note(registry, 1)
    assert residency(registry, ready) is DISK


def test_what_a_lost_node_has_does_not_count(registry: Registry, ready: Adapter) -> None:
    note(registry, 1, **{ready.id: CPU})
    note(registry, 2, **{ready.id: GPU})
    registry.announce_node(make_node(2, timedelta(minutes=1)))
    assert residency(registry, ready) is CPU


def test_what_is_noted_of_one_base_model_leaves_the_others_alone(
    registry: Registry,
    acme: Tenant,
    base: BaseModel,
    ready: Adapter,
    make_revision: MakeRevision,
) -> None:
    registry.put_base_model(replace(base, name="other"))
    other = registry.create_adapter(
        tenant=acme, name="finance", base_model="other", revision=make_revision()
    )
    registry.set_adapter_status(other.id, other.revision.digest, AdapterStatus.READY)
    note(registry, 1, **{ready.id: GPU})
    registry.note_residencies("nod_1", "other", {other.id: CPU})
    assert (residency(registry, ready), residency(registry, other)) == (GPU, CPU)


def test_an_adapter_that_is_gone_has_no_residency_left_and_gets_none(
    registry: Registry, connection: Connection, ready: Adapter
) -> None:
    note(registry, 1, **{ready.id: GPU})
    registry.delete_adapter(ready.tenant_id, ready.id)
    registry.forget_adapter(ready.id)
    note(registry, 1, **{ready.id: GPU})
    assert connection.scalar(text("SELECT count(*) FROM residencies")) == 0


def test_neither_a_residency_nor_a_node_is_a_change_to_reconcile(
    registry: Registry, ready: Adapter
) -> None:
    before = registry.change_counter()
    note(registry, 1, **{ready.id: GPU})
    registry.announce_node(make_node(1))
    assert registry.change_counter() == before
    after = registry.adapter(ready.tenant_id, ready.id)
    assert after == replace(ready, residency=GPU)


def test_what_did_not_change_is_not_written(
    registry: Registry, registry_file: Path, connection: Connection, ready: Adapter
) -> None:
    assert registry_file.exists()
    note(registry, 1, **{ready.id: GPU})
    # Changes with every commit of another connection: https://sqlite.org/pragma.html
    version = connection.scalar(text("PRAGMA data_version"))
    note(registry, 1, **{ready.id: GPU})
    assert connection.scalar(text("PRAGMA data_version")) == version
    note(registry, 1, **{ready.id: CPU})
    assert connection.scalar(text("PRAGMA data_version")) != version
