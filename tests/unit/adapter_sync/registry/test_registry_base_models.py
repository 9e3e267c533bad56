from collections.abc import Callable
from dataclasses import replace

import pytest

from adapter_sync.errors import (
    AdaptersNotSupportedError,
    AliasNameTakenError,
    BaseModelNotFoundError,
    OwnBaseModelError,
    TenantNotFoundError,
)
from adapter_sync.record import AliasTarget, BaseModel, Revision, Tenant
from adapter_sync.registry import Registry
from tests.desired import desired_of


def test_a_base_model_comes_back_as_it_was_put(registry: Registry, base: BaseModel) -> None:
    registry.put_base_model(base)
    assert registry.base_model("tiny") == base
    assert registry.base_models() == [base]


def test_base_models_are_sorted_by_name(registry: Registry, base: BaseModel) -> None:
    for name in ("tiny", "org/Big", "smollm2"):
        registry.put_base_model(replace(base, name=name))
    assert [each.name for each in registry.base_models()] == ["org/Big", "smollm2", "tiny"]


@pytest.mark.parametrize(
    "change",
    [
        {"max_lora_rank": 64},
        {"max_model_len": 8192},
        {"takes_adapters": False},
        {"tensor_shapes": {"model.norm.weight": (5,)}},
    ],
)
def test_a_base_model_that_differs_replaces_the_old_one(
    registry: Registry, base: BaseModel, change: dict[str, object]
) -> None:
    registry.put_base_model(base)
    before = registry.change_counter()
    changed = replace(base, **change)  # type: ignore[arg-type]
    registry.put_base_model(changed)
    assert registry.base_models() == [changed]
    assert registry.change_counter() > before


def test_putting_the_same_again_is_no_change(registry: Registry, base: BaseModel) -> None:
    registry.put_base_model(base)
    before = registry.change_counter()
    registry.put_base_model(replace(base, tensor_shapes=dict(base.tensor_shapes)))
    assert registry.change_counter() == before


def test_an_unknown_base_model_is_answered_with_the_known_ones(
    registry: Registry, base: BaseModel
) -> None:
    with pytest.raises(BaseModelNotFoundError, match="none yet"):
        registry.base_model("gpt")
    registry.put_base_model(base)
    with pytest.raises(BaseModelNotFoundError, match=r"'gpt'.*'tiny'"):
        registry.base_model("gpt")


def test_no_adapter_is_put_on_a_base_model_that_takes_none(
    registry: Registry, acme: Tenant, base: BaseModel, make_revision: Callable[..., Revision]
) -> None:
    embedder = replace(base, name="embedder", tensor_shapes={}, takes_adapters=False)
    registry.put_base_model(embedder)
    assert registry.base_model("embedder") == embedder
    assert registry.base_model_for_adapters("tiny", acme) == base
    words = r"'embedder' takes no adapters.*take adapters are: 'tiny'\."
    with pytest.raises(AdaptersNotSupportedError, match=words):
        registry.base_model_for_adapters("embedder", acme)
    with pytest.raises(AdaptersNotSupportedError, match=words):
        registry.create_adapter(
            tenant=acme, name="finance", base_model="embedder", revision=make_revision()
        )
    with pytest.raises(BaseModelNotFoundError):
        registry.base_model_for_adapters("gpt", acme)
    assert registry.adapters() == []


def test_a_removed_base_model_leaves_its_adapters(
    registry: Registry, acme: Tenant, make_revision: Callable[..., Revision]
) -> None:
    adapter = registry.create_adapter(
        tenant=acme, name="finance", base_model="tiny", revision=make_revision()
    )
    before = registry.change_counter()
    registry.remove_base_model("tiny")
    assert registry.base_models() == []
    assert registry.desired_adapters("tiny").adapters == (desired_of(adapter),)
    assert registry.change_counter() > before


def test_removing_an_unknown_base_model_is_no_change(registry: Registry) -> None:
    before = registry.change_counter()
    registry.remove_base_model("gpt")
    assert registry.change_counter() == before


@pytest.fixture
def owner(registry: Registry, acme: Tenant) -> Tenant:
    """A tenant to whom the base model that the adapters are on is reserved, not to acme."""
    assert acme.tier == "shared"
    tenant = registry.create_tenant("owner", "dedicated")
    registry.reserve_base_model("tiny", ["owner"])
    return tenant


def test_a_reserved_base_model_takes_its_tenants_adapters_and_is_unknown_to_the_others(
    registry: Registry,
    acme: Tenant,
    owner: Tenant,
    base: BaseModel,
    make_revision: Callable[..., Revision],
) -> None:
    registry.put_base_model(replace(base, name="open"))
    revision = make_revision()
    registry.create_adapter(tenant=owner, name="a", base_model="tiny", revision=revision)
    unknown = r"no base model 'tiny'\. The base models are: 'open'\."
    with pytest.raises(BaseModelNotFoundError, match=unknown):
        registry.create_adapter(tenant=acme, name="a", base_model="tiny", revision=revision)
    with pytest.raises(BaseModelNotFoundError, match=unknown):
        registry.check_new_adapter(acme, "a", "tiny")
    with pytest.raises(BaseModelNotFoundError, match=unknown):
        registry.base_model_for_adapters("tiny", acme)
    assert registry.base_model("tiny").is_for(owner.id)
    assert not registry.base_model("tiny").is_for(acme.id)


def test_its_name_is_free_for_the_others_aliases(
    registry: Registry, acme: Tenant, owner: Tenant
) -> None:
    targets = [AliasTarget(base_model="tiny", adapter_name=None)]
    registry.put_alias(acme.id, "tiny", targets)
    with pytest.raises(AliasNameTakenError):
        registry.put_alias(owner.id, "tiny", targets)


def test_a_reservation_outlives_the_base_model_and_its_changes(
    registry: Registry, owner: Tenant, base: BaseModel
) -> None:
    before = registry.change_counter()
    registry.put_base_model(base)
    assert registry.change_counter() == before
    registry.put_base_model(replace(base, max_model_len=9))
    registry.remove_base_model("tiny")
    registry.put_base_model(base)
    assert registry.base_models() == [replace(base, reserved_for=frozenset({owner.id}))]


def test_a_released_base_model_is_everybody_s(
    registry: Registry, acme: Tenant, owner: Tenant
) -> None:
    assert registry.release_base_model("tiny").is_for(acme.id)
    assert registry.base_model_for_adapters("tiny", acme) == registry.base_model("tiny")
    entries = [(entry.action, entry.tenant) for entry in registry.audit(limit=2).items]
    assert entries == [("base_model.released", "owner"), ("base_model.reserved", "owner")]
    assert owner.id


def test_a_reservation_is_replaced_as_a_whole(registry: Registry, owner: Tenant) -> None:
    other = registry.create_tenant("other", "dedicated")
    before = registry.change_counter()
    assert registry.reserve_base_model("tiny", ["other"]).reserved_for == frozenset({other.id})
    assert not registry.base_model("tiny").is_for(owner.id)
    assert registry.change_counter() == before + 1


def test_only_tiers_that_allow_it_have_base_models_of_their_own(
    registry: Registry, acme: Tenant, owner: Tenant
) -> None:
    with pytest.raises(OwnBaseModelError, match="'acme' has the tier 'shared'"):
        registry.reserve_base_model("tiny", ["owner", acme.name])
    with pytest.raises(TenantNotFoundError):
        registry.reserve_base_model("tiny", ["nobody"])
    with pytest.raises(BaseModelNotFoundError):
        registry.reserve_base_model("gpt", ["owner"])
    assert registry.base_model("tiny").reserved_for == frozenset({owner.id})


def test_a_base_model_whose_tenant_is_deleted_is_nobody_s(
    registry: Registry, acme: Tenant, owner: Tenant
) -> None:
    registry.delete_tenant(owner.name)
    assert not registry.base_model("tiny").is_for(acme.id)
