"""Adapters and their revisions, inside a transaction of the caller.

The writing functions count on Database.changing: what they read stays true until they commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from adapter_sync.errors import AdapterExistsError, AdapterLimitError, AdapterNotFoundError
from adapter_sync.record import Adapter, AdapterStatus, Revision, Tenant, check_adapter_name
from adapter_sync.registry.adapter_rows import (
    SELECT_ADAPTERS,
    adapter_of,
    adapter_values,
    revision_values,
)
from adapter_sync.registry.base_models import require_base_model
from adapter_sync.registry.keys import new_id
from adapter_sync.registry.tables import NOT_DELETING, adapters, revisions
from adapter_sync.tiers import Tier, Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterState:
    """A status, with the reason when it is a failure."""

    status: AdapterStatus
    error_code: str | None = None
    error_message: str | None = None


def insert_adapter(
    connection: Connection,
    *,
    tenant: Tenant,
    name: str,
    base_model: str,
    revision: Revision,
    tiers: Tiers,
) -> Adapter:
    """An adapter that is loading.

    Raises InvalidNameError, BaseModelNotFoundError, AdapterExistsError, AdapterLimitError,
    TierMissingError.
    """
    check_adapter_name(name)
    require_base_model(connection, base_model)
    _require_free_name(connection, tenant_id=tenant.id, base_model=base_model, name=name)
    _require_room(connection, tenant, tiers.of(tenant))
    now = datetime.now(UTC)
    adapter = Adapter(
        id=new_id("adp_"),
        tenant_id=tenant.id,
        name=name,
        base_model=base_model,
        status=AdapterStatus.LOADING,
        error_code=None,
        error_message=None,
        revision=revision,
        created_at=now,
        updated_at=now,
    )
    connection.execute(insert(adapters).values(adapter_values(adapter)))
    connection.execute(insert(revisions).values(revision_values(adapter)))
    return adapter


def select_adapter(connection: Connection, *, tenant_id: str, adapter_id: str) -> Adapter:
    """Raises AdapterNotFoundError, also for another tenant's and for one being deleted."""
    return _one(
        connection,
        and_(adapters.c.id == adapter_id, adapters.c.tenant_id == tenant_id, NOT_DELETING),
        asked_for=adapter_id,
    )


def select_adapter_named(
    connection: Connection, *, tenant_id: str, base_model: str, name: str
) -> Adapter:
    """Raises AdapterNotFoundError."""
    return _one(
        connection,
        _has_name(tenant_id=tenant_id, base_model=base_model, name=name),
        asked_for=f"{base_model}:{name}",
    )


def select_adapters(connection: Connection, tenant_id: str | None) -> list[Adapter]:
    """A tenant's adapters, or every tenant's; newest first, without those being deleted."""
    query = SELECT_ADAPTERS.where(NOT_DELETING)
    if tenant_id is not None:
        query = query.where(adapters.c.tenant_id == tenant_id)
    query = query.order_by(adapters.c.created_at.desc(), adapters.c.id)
    return [adapter_of(row) for row in connection.execute(query)]


def select_adapters_on(connection: Connection, base_model: str) -> list[Adapter]:
    """A base model's adapters in every status, sorted by id."""
    query = SELECT_ADAPTERS.where(adapters.c.base_model == base_model).order_by(adapters.c.id)
    return [adapter_of(row) for row in connection.execute(query)]


def mark_deleting(connection: Connection, *, tenant_id: str, adapter_id: str) -> Adapter:
    """The adapter as it is now. Raises AdapterNotFoundError."""
    select_adapter(connection, tenant_id=tenant_id, adapter_id=adapter_id)
    _write_state(connection, adapter_id, AdapterState(status=AdapterStatus.DELETING))
    return _one(connection, adapters.c.id == adapter_id, asked_for=adapter_id)


def update_state(connection: Connection, adapter_id: str, digest: str, state: AdapterState) -> bool:
    """Whether anything changed: not for another content than `digest`, nor while deleting."""
    of_content = and_(adapters.c.id == adapter_id, revisions.c.digest == digest, NOT_DELETING)
    row = connection.execute(SELECT_ADAPTERS.where(of_content)).first()
    wanted = (state.status.value, state.error_code, state.error_message)
    if row is None or (row.status, row.error_code, row.error_message) == wanted:
        return False
    _write_state(connection, adapter_id, state)
    return True


def delete_deleting(connection: Connection, adapter_id: str) -> Sequence[str] | None:
    """Remove a deleting adapter's rows; the digests that no revision uses any more.

    None when there is no such adapter or it is not deleting.
    """
    is_it = and_(adapters.c.id == adapter_id, adapters.c.status == AdapterStatus.DELETING.value)
    if connection.scalar(select(adapters.c.id).where(is_it)) is None:
        return None
    rows = connection.execute(
        select(revisions.c.config_blob, revisions.c.weights_blob).where(
            revisions.c.adapter_id == adapter_id
        )
    ).all()
    digests = {digest for row in rows for digest in row}
    connection.execute(delete(revisions).where(revisions.c.adapter_id == adapter_id))
    connection.execute(delete(adapters).where(adapters.c.id == adapter_id))
    return [digest for digest in sorted(digests) if not is_blob_used(connection, digest)]


def is_blob_used(connection: Connection, digest: str) -> bool:
    """Whether a revision has this blob as its config or its weights."""
    uses_it = or_(revisions.c.config_blob == digest, revisions.c.weights_blob == digest)
    query = select(revisions.c.adapter_id).where(uses_it).limit(1)
    return connection.scalar(query) is not None


def _require_free_name(
    connection: Connection, *, tenant_id: str, base_model: str, name: str
) -> None:
    has_name = _has_name(tenant_id=tenant_id, base_model=base_model, name=name)
    taken_by = connection.scalar(select(adapters.c.id).where(has_name))
    if taken_by is not None:
        raise AdapterExistsError(name=name, base_model=base_model, adapter_id=taken_by)


def _require_room(connection: Connection, tenant: Tenant, tier: Tier) -> None:
    of_tenant = and_(adapters.c.tenant_id == tenant.id, NOT_DELETING)
    count = connection.scalar(select(func.count()).select_from(adapters).where(of_tenant)) or 0
    if count >= tier.max_adapters:
        raise AdapterLimitError(limit=tier.max_adapters, tier=tier.name)


def _has_name(*, tenant_id: str, base_model: str, name: str) -> ColumnElement[bool]:
    return and_(
        adapters.c.tenant_id == tenant_id,
        adapters.c.base_model == base_model,
        adapters.c.name == name,
        NOT_DELETING,
    )


def _one(connection: Connection, where: ColumnElement[bool], *, asked_for: str) -> Adapter:
    row = connection.execute(SELECT_ADAPTERS.where(where)).first()
    if row is None:
        raise AdapterNotFoundError(adapter_id=asked_for)
    return adapter_of(row)


def _write_state(connection: Connection, adapter_id: str, state: AdapterState) -> None:
    connection.execute(
        update(adapters)
        .where(adapters.c.id == adapter_id)
        .values(
            status=state.status.value,
            error_code=state.error_code,
            error_message=state.error_message,
            updated_at=datetime.now(UTC),
        )
    )
