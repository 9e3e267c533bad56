"""Which target answers a request for an alias, on a real registry and with a seeded generator."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from adapter_sync.record import Adapter, AdapterStatus, AliasTarget, BaseModel, Revision, Tenant
from adapter_sync.registry import Registry
from gateway.base_models import BaseModels
from gateway.errors import AdapterFailedError, AdapterNotReadyError, ModelNotFoundError
from gateway.resolve import Target, resolve

REQUESTS = 4000
TINY = BaseModel(
    name="tiny", max_lora_rank=8, max_model_len=64, tensor_shapes={"layers.0.x.weight": (1, 1)}
)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with closing(Registry.open(f"sqlite:///{tmp_path / 'registry.db'}")) as opened:
        opened.put_base_model(TINY)
        yield opened


class Asker:
    """A tenant that asks for models, always with the same random numbers."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry = registry
        self.tenant: Tenant = registry.create_tenant(name, "shared")
        self._base_models = BaseModels(registry)
        self._random = Random(7)  # noqa: S311 - a test's

    def add(self, name: str, status: AdapterStatus = AdapterStatus.READY) -> Adapter:
        digest = hashlib.sha256(f"{self.tenant.id} {name}".encode()).hexdigest()
        revision = Revision(
            number=1,
            digest=digest,
            config_blob=digest,
            weights_blob=digest,
            size_bytes=1,
            rank=1,
            lora_alpha=1,
            target_modules=(),
            warnings=(),
        )
        adapter = self.registry.create_adapter(
            tenant=self.tenant, name=name, base_model="tiny", revision=revision
        )
        self.registry.set_adapter_status(adapter.id, digest, status)
        return adapter

    def alias(self, **weights: int) -> None:
        """The alias `prod` of these adapters; `base` is the base model itself."""
        targets = [
            AliasTarget(
                base_model="tiny", adapter_name=None if name == "base" else name, weight=weight
            )
            for name, weight in weights.items()
        ]
        self.registry.put_alias(self.tenant.id, "prod", targets)

    def ask(self, requested_model: str = "prod") -> Target:
        return resolve(self.registry, self._base_models, self.tenant, requested_model, self._random)

    def answers(self) -> Counter[str | None]:
        return Counter(self.ask().lora_name for _ in range(REQUESTS))


@pytest.fixture
def acme(registry: Registry) -> Asker:
    return Asker(registry, "acme")


@pytest.fixture
def rival(registry: Registry) -> Asker:
    return Asker(registry, "rival")


def test_an_alias_of_one_model_is_that_model(acme: Asker) -> None:
    adapter = acme.add("finance")
    acme.alias(finance=1)
    assert acme.ask() == acme.ask("tiny:finance")
    assert acme.ask().lora_name == adapter.lora_name
    acme.alias(base=1)
    assert acme.ask() == Target(base_model="tiny", lora_name=None)


def test_several_targets_answer_by_their_weights(acme: Asker) -> None:
    old, new = acme.add("old"), acme.add("new")
    acme.alias(old=7, new=2, base=1)
    answers = acme.answers()
    assert answers.keys() == {old.lora_name, new.lora_name, None}
    assert answers[old.lora_name] / REQUESTS == pytest.approx(0.7, abs=0.03)
    assert answers[new.lora_name] / REQUESTS == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("status", [None, AdapterStatus.LOADING, AdapterStatus.FAILED])
def test_the_others_share_the_part_of_a_target_that_can_t_answer(
    acme: Asker, status: AdapterStatus | None
) -> None:
    old, new = acme.add("old"), acme.add("new")
    if status is not None:
        acme.add("out", status)
    acme.alias(out=6, old=3, new=1)
    answers = acme.answers()
    assert answers.keys() == {old.lora_name, new.lora_name}
    assert answers[old.lora_name] / REQUESTS == pytest.approx(0.75, abs=0.03)


def test_an_adapter_made_anew_under_its_name_answers_again(acme: Asker) -> None:
    first = acme.add("finance")
    acme.alias(finance=1)
    acme.registry.delete_adapter(acme.tenant.id, first.id)
    with pytest.raises(ModelNotFoundError, match="The model `prod` does not exist"):
        acme.ask()
    second = acme.add("finance")
    assert acme.ask().lora_name == second.lora_name != first.lora_name


@pytest.mark.parametrize(
    ("statuses", "cls"),
    [
        ([], ModelNotFoundError),
        ([AdapterStatus.FAILED], AdapterFailedError),
        ([AdapterStatus.LOADING], AdapterNotReadyError),
        ([AdapterStatus.FAILED, AdapterStatus.LOADING], AdapterNotReadyError),
    ],
)
def test_when_none_can_answer_the_alias_says_what_helps_most(
    acme: Asker, statuses: list[AdapterStatus], cls: type[Exception]
) -> None:
    for number, status in enumerate(statuses):
        acme.add(f"a{number}", status)
    acme.alias(a0=1, a1=1, a2=1)
    for _ in range(10):
        with pytest.raises(cls, match="`prod`"):
            acme.ask()


def test_an_alias_never_reaches_another_tenant_s_adapter(acme: Asker, rival: Asker) -> None:
    theirs = rival.add("finance")
    rival.alias(finance=1)
    with pytest.raises(ModelNotFoundError) as unknown:
        acme.ask("prod")
    acme.alias(finance=1)
    with pytest.raises(ModelNotFoundError) as unreachable:
        acme.ask("prod")
    assert str(unreachable.value) == str(unknown.value)
    assert rival.ask().lora_name == theirs.lora_name


def test_a_base_model_wins_over_an_alias_of_its_name(acme: Asker) -> None:
    acme.add("finance")
    acme.alias(finance=1)
    acme.registry.put_base_model(replace(TINY, name="prod"))
    assert acme.ask() == Target(base_model="prod", lora_name=None)
    acme.registry.remove_base_model("prod")
    assert acme.ask().lora_name is not None


def test_no_alias_reaches_a_base_model_that_is_gone_or_takes_no_adapters_now(acme: Asker) -> None:
    acme.add("finance")
    acme.alias(finance=1, base=1)
    acme.registry.put_base_model(replace(TINY, takes_adapters=False))
    assert acme.answers().keys() == {None}
    with pytest.raises(ModelNotFoundError):
        acme.ask("tiny:finance")
    acme.registry.remove_base_model("tiny")
    with pytest.raises(ModelNotFoundError, match="`prod`"):
        acme.ask()
