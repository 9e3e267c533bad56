"""From a client's `model` to a base model and perhaps one of the tenant's adapters."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import Random

from adapter_sync.errors import AdapterNotFoundError, AliasNotFoundError, LoraServerError
from adapter_sync.fetches import Fetch, FetchStage
from adapter_sync.record import ADAPTER_NAME, Adapter, AdapterStatus, Alias, BaseModel, Tenant
from adapter_sync.registry import Registry
from gateway.base_models import BaseModels
from gateway.engine_errors import public_words
from gateway.errors import AdapterFailedError, AdapterNotReadyError, ModelNotFoundError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What answers a request; `lora_name` is None for the base model itself."""

    base_model: str
    lora_name: str | None


# Of an alias none of whose targets can answer: what a client can do most about comes first.
_HOPEFUL_FIRST = (AdapterNotReadyError, AdapterFailedError, ModelNotFoundError)


def resolve(
    registry: Registry,
    base_models: BaseModels,
    tenant: Tenant,
    requested_model: str,
    random: Random,
) -> Target:
    """Asks the database; `random` draws among an alias's targets.

    Raises ModelNotFoundError, AdapterNotReadyError, AdapterFailedError.
    """
    known = base_models.of(tenant)
    models = _Models(registry=registry, base_models=known, tenant=tenant)
    # A base model that came later than an alias of its name wins.
    if requested_model in known or ADAPTER_NAME.fullmatch(requested_model) is None:
        base_model, name = split_requested_model(requested_model, known)
        return models.target(base_model, name, requested_model)
    try:
        alias = registry.alias(tenant.id, requested_model)
    except AliasNotFoundError as error:
        raise ModelNotFoundError(requested_model=requested_model) from error
    return _drawn(alias, models, random)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Models:
    """What a tenant may ask for."""

    registry: Registry
    base_models: Mapping[str, BaseModel]
    tenant: Tenant

    def target(self, base_model: str, adapter_name: str | None, requested_model: str) -> Target:
        """Raises ModelNotFoundError, AdapterNotReadyError, AdapterFailedError."""
        base = self.base_models.get(base_model)
        if base is None or not (adapter_name is None or base.takes_adapters):
            raise ModelNotFoundError(requested_model=requested_model)
        if adapter_name is None:
            return Target(base_model=base_model, lora_name=None)
        try:
            found = self.registry.find_adapter_or_fetch(self.tenant.id, base_model, adapter_name)
        except AdapterNotFoundError as error:
            raise ModelNotFoundError(requested_model=requested_model) from error
        if isinstance(found, Fetch):
            raise _not_here(found, requested_model)
        return servable(found, requested_model)


def _drawn(alias: Alias, models: _Models, random: Random) -> Target:
    """A target drawn by weight; one that can't answer leaves its part to the others."""
    left = list(alias.targets)
    refusals: list[ModelNotFoundError | AdapterNotReadyError | AdapterFailedError] = []
    while left:
        [target] = random.choices(left, [each.weight for each in left])
        try:
            return models.target(target.base_model, target.adapter_name, alias.name)
        except _HOPEFUL_FIRST as error:
            refusals.append(error)
            left.remove(target)
    raise min(refusals, key=lambda error: _HOPEFUL_FIRST.index(type(error)))


def split_requested_model(
    requested_model: str, base_models: Collection[str]
) -> tuple[str, str | None]:
    """The base model and the adapter's name behind the ':' that follows it, if there is one.

    Base models' names may hold '/', '.' and ':', adapters' no ':'. Raises ModelNotFoundError.
    """
    if requested_model in base_models:
        return requested_model, None
    base_model, _, name = requested_model.rpartition(":")
    if base_model in base_models and ADAPTER_NAME.fullmatch(name) is not None:
        return base_model, name
    raise ModelNotFoundError(requested_model=requested_model)


def _not_here(fetch: Fetch, requested_model: str) -> LoraServerError:
    """Why an adapter that is being fetched can't answer."""
    if fetch.stage is FetchStage.FAILED:
        reason = fetch.error_message or "no reason was given."
        return AdapterFailedError(requested_model=requested_model, reason=reason)
    return AdapterNotReadyError(requested_model=requested_model)


def servable(adapter: Adapter, requested_model: str) -> Target:
    """What serves of the adapter, as a target. Raises AdapterNotReadyError, AdapterFailedError."""
    if adapter.serving is not None and adapter.status is not AdapterStatus.DELETING:
        lora_name = adapter.lora_name_of(adapter.serving)
        return Target(base_model=adapter.base_model, lora_name=lora_name)
    match adapter.status:
        case AdapterStatus.LOADING | AdapterStatus.READY:
            raise AdapterNotReadyError(requested_model=requested_model)
        case AdapterStatus.FAILED:
            reason = public_words(
                adapter.error_message or "no reason was given.",
                lora_name=adapter.lora_name,
                served_name=requested_model,
            )
            raise AdapterFailedError(requested_model=requested_model, reason=reason)
        case AdapterStatus.DELETING:
            raise ModelNotFoundError(requested_model=requested_model)
