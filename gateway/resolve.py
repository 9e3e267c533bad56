"""From a client's `model` to a base model and perhaps one of the tenant's adapters."""

from collections.abc import Collection
from dataclasses import dataclass

from adapter_sync.errors import AdapterNotFoundError, LoraServerError
from adapter_sync.fetches import Fetch, FetchStage
from adapter_sync.record import ADAPTER_NAME, Adapter, AdapterStatus, Tenant
from adapter_sync.registry import Registry
from gateway.base_models import BaseModels
from gateway.engine_errors import public_words
from gateway.errors import AdapterFailedError, AdapterNotReadyError, ModelNotFoundError


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What answers a request; `lora_name` is None for the base model itself."""

    base_model: str
    lora_name: str | None


def resolve(
    registry: Registry, base_models: BaseModels, tenant: Tenant, requested_model: str
) -> Target:
    """Asks the database.

    Raises ModelNotFoundError, AdapterNotReadyError, AdapterFailedError.
    """
    base_model, name = split_requested_model(requested_model, base_models.by_name())
    if name is None:
        return Target(base_model=base_model, lora_name=None)
    try:
        adapter = registry.find_adapter(tenant.id, base_model, name)
    except AdapterNotFoundError as error:
        fetch = registry.find_fetch(tenant.id, base_model, name)
        if fetch is None:
            raise ModelNotFoundError(requested_model=requested_model) from error
        raise _not_here(fetch) from error
    return servable(adapter, requested_model)


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


def _not_here(fetch: Fetch) -> LoraServerError:
    """Why an adapter that is being fetched can't answer."""
    if fetch.stage is FetchStage.FAILED:
        reason = fetch.error_message or "no reason was given."
        return AdapterFailedError(requested_model=fetch.requested_model, reason=reason)
    return AdapterNotReadyError(requested_model=fetch.requested_model)


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
