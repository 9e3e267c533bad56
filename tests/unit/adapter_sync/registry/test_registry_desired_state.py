"""What a pass knows of a registry that others change meanwhile."""

import random
from collections.abc import Callable
from contextlib import closing

import pytest
from sqlalchemy import Connection, text

from adapter_sync.reconciler.desired import DesiredState
from adapter_sync.record import Adapter, AdapterStatus, Overwrite, Revision, Tenant
from adapter_sync.registry import Registry

MakeRevision = Callable[..., Revision]
READY, FAILED = AdapterStatus.READY, AdapterStatus.FAILED


@pytest.fixture
def state(registry: Registry) -> DesiredState:
    return DesiredState(registry, "tiny")


def add(registry: Registry, tenant: Tenant, name: str, revision: Revision) -> Adapter:
    return registry.create_adapter(
        tenant=tenant,
        name=name,
        base_model="tiny",
        revision=revision,
        overwrite=Overwrite(replace=True),
    )


def same(state: DesiredState, registry: Registry) -> bool:
    """Whether it is as one that has just read all."""
    fresh = DesiredState(registry, "tiny")
    fresh.look()
    return (dict(state.adapters), state.served) == (dict(fresh.adapters), fresh.served)


def test_a_look_tells_only_what_changed_since_the_one_before(
    registry: Registry, acme: Tenant, make_revision: MakeRevision
) -> None:
    old = add(registry, acme, "old", make_revision())
    first = registry.desired_adapters("tiny")
    assert [each.id for each in first.adapters] == [old.id]
    new = add(registry, acme, "new", make_revision("other"))
    second = registry.desired_adapters("tiny", first.change)
    assert ([each.id for each in second.adapters], second.count) == ([new.id], 2)
    registry.set_adapter_status(old.id, old.revision.digest, READY)
    third = registry.desired_adapters("tiny", second.change)
    assert [(each.id, each.status) for each in third.adapters] == [(old.id, READY)]
    assert registry.desired_adapters("tiny", third.change).adapters == ()


def test_use_of_an_adapter_is_no_change(
    registry: Registry, connection: Connection, acme: Tenant, make_revision: MakeRevision
) -> None:
    adapter = add(registry, acme, "finance", make_revision())
    before = registry.desired_adapters("tiny")
    registry.note_residencies("nod_1", "tiny", {})
    connection.execute(text("UPDATE adapters SET last_used_at = '2026-01-01'"))
    assert registry.adapter(acme.id, adapter.id).last_used_at is not None
    assert registry.desired_adapters("tiny", before.change).adapters == ()


@pytest.mark.parametrize("seed", range(3))
def test_it_stays_as_the_registry_whatever_happens_between_two_looks(
    registry: Registry,
    registry_url: str,
    state: DesiredState,
    acme: Tenant,
    make_revision: MakeRevision,
    seed: int,
) -> None:
    rng = random.Random(seed)  # noqa: S311 - a test's draw, to be repeated
    names = ["a", "b", "c", "d"]
    with closing(Registry.open(registry_url)) as other_node:
        for step in range(40):
            name = rng.choice(names)
            known = {each.name: each for each in registry.adapters(acme.id)}.get(name)
            draw = rng.random()
            if known is None or draw < 0.4:
                add(registry, acme, name, make_revision(f"{step}"))
            elif draw < 0.7:
                told = rng.choice([READY, FAILED])
                registry.set_adapter_status(known.id, known.revision.digest, told)
            elif draw < 0.85:
                registry.delete_adapter(acme.id, known.id)
            for each in list(state.adapters.values()):
                if each.status is AdapterStatus.DELETING and rng.random() < 0.5:
                    if rng.random() < 0.5:
                        registry.forget_adapter(each.id)
                        state.forget(each.id)
                    else:
                        other_node.forget_adapter(each.id)
            if rng.random() < 0.6:
                state.look()
                assert same(state, registry)


def test_a_registry_that_was_set_back_is_read_anew(
    registry: Registry,
    connection: Connection,
    state: DesiredState,
    acme: Tenant,
    make_revision: MakeRevision,
) -> None:
    adapter = add(registry, acme, "finance", make_revision())
    registry.set_adapter_status(adapter.id, adapter.revision.digest, READY)
    state.look()
    connection.execute(text("UPDATE adapters SET status = 'failed', changed_in = 1"))
    connection.execute(text("UPDATE change_counter SET value = 1"))
    state.look()
    assert state.adapters[adapter.id].status is FAILED
    assert same(state, registry)
