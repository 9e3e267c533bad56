"""Tenants, inside a transaction of the caller. A deleted one is not there, but for its row."""

from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, Row, and_, insert, select, update
from sqlalchemy.exc import IntegrityError

from adapter_sync.errors import TenantExistsError, TenantNotFoundError
from adapter_sync.record import Tenant, check_tenant_name
from adapter_sync.registry.keys import new_id
from adapter_sync.registry.tables import tenants
from adapter_sync.tiers import Tier, Tiers

LIVE = tenants.c.deleted_at.is_(None)


def insert_tenant(connection: Connection, *, name: str, tier: str, tiers: Tiers) -> Tenant:
    """Raises InvalidNameError, UnknownTierError, TenantExistsError."""
    tenant = Tenant(
        id=new_id("ten_"),
        name=check_tenant_name(name),
        tier=tiers.named(tier).name,
        created_at=datetime.now(UTC),
    )
    try:
        connection.execute(
            insert(tenants).values(
                id=tenant.id, name=tenant.name, tier=tenant.tier, created_at=tenant.created_at
            )
        )
    except IntegrityError as error:
        raise TenantExistsError(name=name) from error
    return tenant


def select_tenant(connection: Connection, name: str) -> Tenant:
    """Raises TenantNotFoundError."""
    return _one(connection, tenants.c.name == name, asked_for=name)


def require_live(connection: Connection, tenant: Tenant) -> None:
    """Raises TenantNotFoundError when it was deleted since it was read."""
    _one(connection, tenants.c.id == tenant.id, asked_for=tenant.name)


def select_tenant_with_id(connection: Connection, tenant_id: str) -> Tenant:
    """Raises TenantNotFoundError."""
    return _one(connection, tenants.c.id == tenant_id, asked_for=tenant_id)


def select_tenants(connection: Connection) -> list[Tenant]:
    """Every tenant, sorted by name."""
    query = select(tenants).where(LIVE).order_by(tenants.c.name)
    return [tenant_of(row) for row in connection.execute(query)]


def update_tier(connection: Connection, tenant: Tenant, tier: Tier) -> bool:
    """Whether it had another one."""
    changed = connection.execute(
        update(tenants)
        .where(tenants.c.id == tenant.id, tenants.c.tier != tier.name, LIVE)
        .values(tier=tier.name)
    )
    return changed.rowcount > 0


def mark_deleted(connection: Connection, tenant: Tenant) -> None:
    """Give its name free; the row stays."""
    connection.execute(
        update(tenants)
        .where(tenants.c.id == tenant.id)
        .values(name=tenants.c.id, deleted_at=datetime.now(UTC))
    )


def tenant_of(row: Row[tuple[object, ...]]) -> Tenant:
    """The tenant in a row that begins with the columns of its table."""
    return Tenant(id=row.id, name=row.name, tier=row.tier, created_at=row.created_at)


def _one(connection: Connection, where: ColumnElement[bool], *, asked_for: str) -> Tenant:
    row = connection.execute(select(tenants).where(and_(where, LIVE))).first()
    if row is None:
        raise TenantNotFoundError(name=asked_for)
    return tenant_of(row)
