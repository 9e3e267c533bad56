"""Aliases, inside a transaction of the caller."""

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, select, update

from adapter_sync.errors import AliasLimitError, AliasNameTakenError, AliasNotFoundError
from adapter_sync.record import Alias, AliasTarget, check_alias_name
from adapter_sync.registry.base_models import is_base_model
from adapter_sync.registry.tables import aliases

MAX_ALIASES = 100
"""For each tenant."""


def upsert_alias(
    connection: Connection, *, tenant_id: str, name: str, targets: Sequence[AliasTarget]
) -> tuple[Alias, bool]:
    """The alias, and whether it is new.

    Raises InvalidNameError, AliasNameTakenError, AliasLimitError.
    """
    check_alias_name(name)
    if is_base_model(connection, name, tenant_id):
        raise AliasNameTakenError(alias=name)
    row = connection.execute(select(aliases).where(_has_name(tenant_id, name))).first()
    now = datetime.now(UTC)
    if row is None:
        _require_room(connection, tenant_id)
    alias = Alias(
        tenant_id=tenant_id,
        name=name,
        targets=tuple(targets),
        created_at=now if row is None else row.created_at,
        updated_at=now,
    )
    statement = (
        insert(aliases) if row is None else update(aliases).where(_has_name(tenant_id, name))
    )
    connection.execute(statement.values(_values(alias)))
    return alias, row is None


def select_alias(connection: Connection, *, tenant_id: str, name: str) -> Alias:
    """Raises AliasNotFoundError, also for another tenant's."""
    row = connection.execute(select(aliases).where(_has_name(tenant_id, name))).first()
    if row is None:
        raise AliasNotFoundError(alias=name)
    return _alias(row)


def select_aliases(connection: Connection, tenant_id: str) -> list[Alias]:
    """A tenant's aliases, sorted by name."""
    query = select(aliases).where(aliases.c.tenant_id == tenant_id).order_by(aliases.c.name)
    return [_alias(row) for row in connection.execute(query)]


def delete_alias(connection: Connection, *, tenant_id: str, name: str) -> None:
    """Raises AliasNotFoundError."""
    deleted = connection.execute(delete(aliases).where(_has_name(tenant_id, name)))
    if deleted.rowcount == 0:
        raise AliasNotFoundError(alias=name)


def _require_room(connection: Connection, tenant_id: str) -> None:
    of_tenant = aliases.c.tenant_id == tenant_id
    count = connection.scalar(select(func.count()).select_from(aliases).where(of_tenant)) or 0
    if count >= MAX_ALIASES:
        raise AliasLimitError(limit=MAX_ALIASES)


def _has_name(tenant_id: str, name: str) -> ColumnElement[bool]:
    return and_(aliases.c.tenant_id == tenant_id, aliases.c.name == name)


def _values(alias: Alias) -> dict[str, object]:
    return {
        "tenant_id": alias.tenant_id,
        "name": alias.name,
        "targets": [
            {
                "base_model": target.base_model,
                "adapter_name": target.adapter_name,
                "weight": target.weight,
            }
            for target in alias.targets
        ],
        "created_at": alias.created_at,
        "updated_at": alias.updated_at,
    }


def _alias(row: Row[tuple[object, ...]]) -> Alias:
    return Alias(
        tenant_id=row.tenant_id,
        name=row.name,
        targets=tuple(AliasTarget(**target) for target in row.targets),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
