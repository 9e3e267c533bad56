"""Lists and their objects as the admin API shows them; times are Unix seconds."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Query

from adapter_sync.record import ApiKey, AuditEntry, Tenant

Limit = Annotated[int, Query(ge=1, le=100)]
DEFAULT_LIMIT = 20


def tenant_object(tenant: Tenant) -> dict[str, Any]:
    """The tenant."""
    return {
        "id": tenant.id,
        "object": "tenant",
        "name": tenant.name,
        "tier": tenant.tier,
        "created_at": int(tenant.created_at.timestamp()),
    }


def key_object(key: ApiKey, tenant_name: str) -> dict[str, Any]:
    """The key without its secret."""
    return {
        "id": key.id,
        "object": "api_key",
        "tenant": tenant_name,
        "name": key.name,
        "created_at": _unix(key.created_at),
        "expires_at": _unix(key.expires_at),
        "revoked_at": _unix(key.revoked_at),
        "last_used_at": _unix(key.last_used_at),
    }


def audit_object(entry: AuditEntry) -> dict[str, Any]:
    """An entry of the audit."""
    return {
        "id": f"aud_{entry.id}",
        "object": "audit_entry",
        "at": _unix(entry.at),
        "actor": entry.actor,
        "action": entry.action,
        "tenant": entry.tenant,
        "object_id": entry.object_id,
        "details": dict(entry.details),
    }


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
