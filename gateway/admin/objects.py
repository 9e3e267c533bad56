"""Lists and their objects as the admin API shows them; times are Unix seconds."""

from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias

from fastapi import Path, Query
from pydantic import with_config
from typing_extensions import TypedDict

from adapter_sync.record import TENANT_NAME, ApiKey, AuditEntry, Tenant
from adapter_sync.tiers import Tier
from gateway.list_object import EXACT

Limit = Annotated[int, Query(ge=1, le=100)]
DEFAULT_LIMIT = 20
After = Annotated[str | None, Query(description="The `last_id` of the page before.")]
TenantName: TypeAlias = Annotated[
    str,
    Path(
        description="The tenant's name.",
        json_schema_extra={"pattern": f"^{TENANT_NAME.pattern}$"},
        examples=["acme"],
    ),
]


@with_config(EXACT)
class TenantObject(TypedDict):
    """The owner of keys and adapters."""

    id: str
    object: Literal["tenant"]
    name: str
    tier: str
    created_at: int


@with_config(EXACT)
class KeyObject(TypedDict):
    """A tenant's key without its secret."""

    id: str
    object: Literal["api_key"]
    tenant: str
    name: str | None
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None


@with_config(EXACT)
class NewKeyObject(KeyObject):
    """A key just made, with its text, which is told only here."""

    api_key: str


@with_config(EXACT)
class AuditObject(TypedDict):
    """Who changed what, and when."""

    id: str
    object: Literal["audit_entry"]
    at: int
    actor: str
    action: str
    tenant: str
    object_id: str
    details: dict[str, Any]


@with_config(EXACT)
class TierObject(TypedDict):
    """Named limits; a tier's name is its id."""

    id: str
    object: Literal["tier"]
    name: str
    max_adapters: int
    max_adapter_bytes: int
    requests_per_minute: int
    tokens_per_minute: int
    max_streams: int
    weight: int


@with_config(EXACT)
class BaseModelObject(TypedDict):
    """A base model and whom it is for: None is everybody."""

    id: str
    object: Literal["base_model"]
    takes_adapters: bool
    max_model_len: int
    reserved_for: list[str] | None


@with_config(EXACT)
class NodeObject(TypedDict):
    """A Triton with its adapter_sync."""

    id: str
    object: Literal["node"]
    status: Literal["up", "lost"]
    host: str
    triton: str
    version: str
    base_models: list[dict[str, Any]]
    started_at: int
    heartbeat_at: int


def tenant_object(tenant: Tenant) -> TenantObject:
    """The tenant."""
    return {
        "id": tenant.id,
        "object": "tenant",
        "name": tenant.name,
        "tier": tenant.tier,
        "created_at": int(tenant.created_at.timestamp()),
    }


def key_object(key: ApiKey, tenant_name: str) -> KeyObject:
    """The key without its secret."""
    return {
        "id": key.id,
        "object": "api_key",
        "tenant": tenant_name,
        "name": key.name,
        "created_at": int(key.created_at.timestamp()),
        "expires_at": _unix(key.expires_at),
        "revoked_at": _unix(key.revoked_at),
        "last_used_at": _unix(key.last_used_at),
    }


def audit_object(entry: AuditEntry) -> AuditObject:
    """An entry of the audit."""
    return {
        "id": f"aud_{entry.id}",
        "object": "audit_entry",
        "at": int(entry.at.timestamp()),
        "actor": entry.actor,
        "action": entry.action,
        "tenant": entry.tenant,
        "object_id": entry.object_id,
        "details": dict(entry.details),
    }


def tier_object(tier: Tier) -> TierObject:
    """The tier."""
    return {
        "id": tier.name,
        "object": "tier",
        "name": tier.name,
        "max_adapters": tier.max_adapters,
        "max_adapter_bytes": tier.max_adapter_bytes,
        "requests_per_minute": tier.requests_per_minute,
        "tokens_per_minute": tier.tokens_per_minute,
        "max_streams": tier.max_streams,
        "weight": tier.weight,
    }


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
