"""How an adapter with its current revision becomes rows, and comes back from one."""

from sqlalchemy import Row, and_, select

from adapter_sync.record import Adapter, AdapterStatus, Revision
from adapter_sync.registry.tables import adapters, revisions

SELECT_ADAPTERS = select(
    adapters,
    *(column for column in revisions.c if column.name not in ("adapter_id", "created_at")),
).join(
    revisions,
    and_(revisions.c.adapter_id == adapters.c.id, revisions.c.number == adapters.c.revision_number),
)


def adapter_values(adapter: Adapter) -> dict[str, object]:
    """The adapter's row."""
    return {
        "id": adapter.id,
        "tenant_id": adapter.tenant_id,
        "base_model": adapter.base_model,
        "name": adapter.name,
        "revision_number": adapter.revision.number,
        "status": adapter.status.value,
        "error_code": adapter.error_code,
        "error_message": adapter.error_message,
        "created_at": adapter.created_at,
        "updated_at": adapter.updated_at,
    }


def revision_values(adapter: Adapter) -> dict[str, object]:
    """The row of the adapter's revision."""
    revision = adapter.revision
    return {
        "adapter_id": adapter.id,
        "number": revision.number,
        "digest": revision.digest,
        "config_blob": revision.config_blob,
        "weights_blob": revision.weights_blob,
        "size_bytes": revision.size_bytes,
        "rank": revision.rank,
        "lora_alpha": revision.lora_alpha,
        "target_modules": list(revision.target_modules),
        "warnings": list(revision.warnings),
        "created_at": adapter.created_at,
    }


def adapter_of(row: Row[tuple[object, ...]]) -> Adapter:
    """The adapter in a row of SELECT_ADAPTERS."""
    return Adapter(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        base_model=row.base_model,
        status=AdapterStatus(row.status),
        error_code=row.error_code,
        error_message=row.error_message,
        revision=_revision(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
        last_used_at=row.last_used_at,
    )


def _revision(row: Row[tuple[object, ...]]) -> Revision:
    return Revision(
        number=row.number,
        digest=row.digest,
        config_blob=row.config_blob,
        weights_blob=row.weights_blob,
        size_bytes=row.size_bytes,
        rank=row.rank,
        lora_alpha=row.lora_alpha,
        target_modules=tuple(row.target_modules),
        warnings=tuple(row.warnings),
    )
