from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from threading import Barrier

import pytest

from adapter_sync.errors import (
    AliasLimitError,
    AliasNameTakenError,
    AliasNotFoundError,
    InvalidNameError,
)
from adapter_sync.record import AliasTarget, BaseModel, Revision, Tenant
from adapter_sync.registry import Registry

FINANCE = AliasTarget(base_model="tiny", adapter_name="finance")
CANARY = (
    AliasTarget(base_model="tiny", adapter_name="finance", weight=90),
    AliasTarget(base_model="tiny", adapter_name=None, weight=10),
)


def test_an_alias_comes_back_whole_in_any_process(
    registry: Registry, registry_url: str, acme: Tenant
) -> None:
    alias, is_new = registry.put_alias(acme.id, "base-llm-with-customerA-adapter", CANARY)
    assert is_new
    assert alias.targets == CANARY
    assert alias.created_at == alias.updated_at
    with closing(Registry.open(registry_url)) as other:
        assert other.alias(acme.id, "base-llm-with-customerA-adapter") == alias
        assert other.aliases(acme.id) == [alias]


def test_putting_an_alias_again_replaces_its_targets_and_keeps_its_birth(
    registry: Registry, acme: Tenant
) -> None:
    first, _ = registry.put_alias(acme.id, "prod", CANARY)
    second, is_new = registry.put_alias(acme.id, "prod", [FINANCE])
    assert not is_new
    assert second.targets == (FINANCE,)
    assert second.created_at == first.created_at
    assert second.updated_at > first.updated_at
    assert registry.aliases(acme.id) == [second]


def test_aliases_are_sorted_and_each_tenant_has_its_own(
    registry: Registry, acme: Tenant, rival: Tenant
) -> None:
    for name in ("prod", "Beta", "alpha"):
        registry.put_alias(acme.id, name, [FINANCE])
    theirs, _ = registry.put_alias(rival.id, "prod", CANARY)
    assert [alias.name for alias in registry.aliases(acme.id)] == ["Beta", "alpha", "prod"]
    assert registry.alias(acme.id, "prod").targets == (FINANCE,)
    assert registry.aliases(rival.id) == [theirs]
    registry.delete_alias(acme.id, "prod")
    assert registry.alias(rival.id, "prod") == theirs


def test_an_alias_is_deleted_once(registry: Registry, acme: Tenant, rival: Tenant) -> None:
    registry.put_alias(acme.id, "prod", [FINANCE])
    with pytest.raises(AliasNotFoundError, match="There is no alias 'prod'"):
        registry.delete_alias(rival.id, "prod")
    registry.delete_alias(acme.id, "prod")
    with pytest.raises(AliasNotFoundError, match="There is no alias 'prod'"):
        registry.delete_alias(acme.id, "prod")
    with pytest.raises(AliasNotFoundError, match="There is no alias 'prod'"):
        registry.alias(acme.id, "prod")


def test_an_alias_needs_a_good_name_that_is_no_base_model_s(
    registry: Registry, acme: Tenant
) -> None:
    for name in ("", "a:b", "a/b", "x" * 65, "-a", "a b"):
        with pytest.raises(InvalidNameError, match="is not a valid alias"):
            registry.put_alias(acme.id, name, [FINANCE])
    with pytest.raises(AliasNameTakenError, match="'tiny' is a base model's name"):
        registry.put_alias(acme.id, "tiny", [FINANCE])
    assert registry.aliases(acme.id) == []


def test_an_alias_outlives_a_base_model_of_its_name_and_can_be_deleted(
    registry: Registry, acme: Tenant, base: BaseModel
) -> None:
    registry.put_alias(acme.id, "later", [FINANCE])
    registry.put_base_model(replace(base, name="later"))
    with pytest.raises(AliasNameTakenError):
        registry.put_alias(acme.id, "later", CANARY)
    assert registry.alias(acme.id, "later").targets == (FINANCE,)
    registry.delete_alias(acme.id, "later")


def test_a_deleted_adapter_stays_an_alias_s_target(
    registry: Registry, acme: Tenant, make_revision: Callable[..., Revision]
) -> None:
    adapter = registry.create_adapter(
        tenant=acme, name="finance", base_model="tiny", revision=make_revision()
    )
    registry.put_alias(acme.id, "prod", [FINANCE])
    registry.delete_adapter(acme.id, adapter.id)
    registry.forget_adapter(adapter.id)
    assert registry.alias(acme.id, "prod").targets == (FINANCE,)


def test_a_tenant_may_have_a_hundred_aliases_and_still_replace_them(
    registry: Registry, acme: Tenant, rival: Tenant
) -> None:
    for number in range(100):
        registry.put_alias(acme.id, f"a{number}", [FINANCE])
    with pytest.raises(AliasLimitError, match=r"100 aliases.*Delete one first"):
        registry.put_alias(acme.id, "one-more", [FINANCE])
    registry.put_alias(acme.id, "a0", CANARY)
    registry.put_alias(rival.id, "one-more", [FINANCE])
    registry.delete_alias(acme.id, "a1")
    registry.put_alias(acme.id, "one-more", [FINANCE])
    assert len(registry.aliases(acme.id)) == 100


def test_of_threads_that_put_the_same_alias_one_makes_it_and_none_fails(
    registry: Registry, acme: Tenant
) -> None:
    barrier = Barrier(6)

    def put(number: int) -> bool:
        barrier.wait()
        target = AliasTarget(base_model="tiny", adapter_name=f"a{number}")
        return registry.put_alias(acme.id, "prod", [target])[1]

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(put, range(6))) == [False] * 5 + [True]
    [alias] = registry.aliases(acme.id)
    assert len(alias.targets) == 1


def test_aliases_are_no_changes_to_adapters(registry: Registry, acme: Tenant) -> None:
    before = registry.change_counter()
    registry.put_alias(acme.id, "prod", [FINANCE])
    registry.delete_alias(acme.id, "prod")
    assert registry.change_counter() == before
