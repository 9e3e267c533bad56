"""The audit: who changed what. Written in the transaction of the change, and only added to."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import Connection, Row, insert, select

from adapter_sync.record import AuditEntry, Page
from adapter_sync.registry.pages import page_of
from adapter_sync.registry.tables import audit, tenants


def insert_entry(
    connection: Connection,
    *,
    actor: str,
    action: str,
    tenant_id: str,
    object_id: str,
    details: Mapping[str, object],
) -> None:
    """Add an entry; the tenant's name is the one that it has now."""
    connection.execute(
        insert(audit).values(
            at=datetime.now(UTC),
            actor=actor,
            action=action,
            tenant=select(tenants.c.name).where(tenants.c.id == tenant_id).scalar_subquery(),
            object=object_id,
            details={"tenant_id": tenant_id, **details},
        )
    )


def select_entries(
    connection: Connection, *, limit: int | None, before: int | None
) -> Page[AuditEntry]:
    """The newest first; those before an id, when one is given."""
    query = select(audit).order_by(audit.c.id.desc())
    if before is not None:
        query = query.where(audit.c.id < before)
    return page_of(connection, query, _entry_of, limit=limit)


def _entry_of(row: Row[tuple[object, ...]]) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        at=row.at,
        actor=row.actor,
        action=row.action,
        tenant=row.tenant,
        object_id=row.object,
        details=row.details,
    )
