"""How loractl shows tenants, keys and adapters: as JSON documents and as aligned columns."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from adapter_sync.record import Adapter, ApiKey, Node, NodeBaseModel, Tenant

Document = dict[str, object]


def list_document(data: Sequence[Document]) -> Document:
    """A list as the OpenAI API shows it."""
    return {"object": "list", "data": list(data)}


def tenant_document(tenant: Tenant) -> Document:
    """`created_at` in Unix seconds."""
    return {
        "id": tenant.id,
        "tenant": tenant.name,
        "tier": tenant.tier,
        "created_at": int(tenant.created_at.timestamp()),
    }


def key_document(key: ApiKey, tenant_name: str) -> Document:
    """Without its secret; times in Unix seconds, null for what did not or will not happen."""
    return {
        "id": key.id,
        "tenant": tenant_name,
        "name": key.name,
        "created_at": int(key.created_at.timestamp()),
        "expires_at": _unix(key.expires_at),
        "revoked_at": _unix(key.revoked_at),
        "last_used_at": _unix(key.last_used_at),
    }


def adapter_document(adapter: Adapter, tenant_name: str) -> Document:
    """`created_at` in Unix seconds; `error` is null or a code and a message."""
    return {
        "id": adapter.id,
        "tenant": tenant_name,
        "name": adapter.name,
        "base_model": adapter.base_model,
        "model": adapter.requested_model,
        "status": adapter.status.value,
        "error": _error(adapter),
        "size_bytes": adapter.revision.size_bytes,
        "rank": adapter.revision.rank,
        "created_at": int(adapter.created_at.timestamp()),
    }


def tenants_table(tenants: Sequence[Tenant]) -> str:
    """A line for each tenant."""
    rows = [(tenant.name, tenant.tier, _time(tenant.created_at), tenant.id) for tenant in tenants]
    return _aligned([("TENANT", "TIER", "CREATED", "ID"), *rows])


def keys_table(keys: Sequence[ApiKey], now: datetime) -> str:
    """A line for each key, its name at the end."""
    rows = [
        (
            key.id,
            _state(key, now),
            _time(key.created_at),
            _time(key.expires_at),
            _time(key.last_used_at),
            key.name or "",
        )
        for key in keys
    ]
    return _aligned([("ID", "STATE", "CREATED", "EXPIRES", "LAST USED", "NAME"), *rows])


def adapters_table(adapters: Sequence[Adapter], tenant_names: Mapping[str, str]) -> str:
    """A line for each adapter, the reason of a failure at its end."""
    rows = [
        (
            adapter.id,
            tenant_names[adapter.tenant_id],
            adapter.requested_model,
            adapter.status.value,
            str(adapter.revision.rank),
            f"{adapter.revision.size_bytes / 1_000_000:.1f} MB",
            _time(adapter.created_at),
            one_line(adapter.error_message or ""),
        )
        for adapter in adapters
    ]
    header = ("ID", "TENANT", "MODEL", "STATUS", "RANK", "SIZE", "CREATED", "ERROR")
    return _aligned([header, *rows])


def nodes_table(nodes: Sequence[Node], now: datetime) -> str:
    """A line for each node, its base models with their maps' revisions at the end."""
    rows = [
        (
            node.id,
            "lost" if node.is_lost(now) else "up",
            node.host,
            node.triton,
            node.version,
            _time(node.started_at),
            _time(node.heartbeat_at),
            " ".join(map(_at_revision, node.base_models)),
        )
        for node in nodes
    ]
    header = ("ID", "STATUS", "HOST", "TRITON", "VERSION", "STARTED", "HEARTBEAT", "BASE MODELS")
    return _aligned([header, *rows])


def one_line(text: str) -> str:
    """The text with each run of blanks and line ends as one blank."""
    return " ".join(text.split())


def _at_revision(base: NodeBaseModel) -> str:
    at = "" if base.lora_map_revision is None else f"@{base.lora_map_revision}"
    return f"{base.name}{at}"


def _error(adapter: Adapter) -> Document | None:
    if adapter.error_code is None and adapter.error_message is None:
        return None
    return {"code": adapter.error_code, "message": adapter.error_message}


def _state(key: ApiKey, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "valid" if key.is_valid(now) else "expired"


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _time(moment: datetime | None) -> str:
    return "never" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%SZ")


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
