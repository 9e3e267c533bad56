from collections.abc import Callable
from dataclasses import replace

import pytest

from adapter_sync.errors import AdaptersNotSupportedError, BaseModelNotFoundError
from adapter_sync.record import BaseModel, Revision, Tenant
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
    assert registry.base_model_for_adapters("tiny") == base
    words = r"'embedder' takes no adapters.*take adapters are: 'tiny'\."
    with pytest.raises(AdaptersNotSupportedError, match=words):
        registry.base_model_for_adapters("embedder")
    with pytest.raises(AdaptersNotSupportedError, match=words):
        registry.create_adapter(
            tenant=acme, name="finance", base_model="embedder", revision=make_revision()
        )
    with pytest.raises(BaseModelNotFoundError):
        registry.base_model_for_adapters("gpt")
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
    assert registry.desired_adapters("tiny") == [desired_of(adapter)]
    assert registry.change_counter() > before


def test_removing_an_unknown_base_model_is_no_change(registry: Registry) -> None:
    before = registry.change_counter()
    registry.remove_base_model("gpt")
    assert registry.change_counter() == before
