"""Adapters and their revisions, inside a transaction of the caller.

The writing functions count on Database.writing: what they read stays true until they commit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, update

from adapter_sync.errors import AdapterExistsError, AdapterLimitError, AdapterNotFoundError
from adapter_sync.record import (
    Adapter,
    AdapterStatus,
    DesiredChanges,
    Overwrite,
    Page,
    Revision,
    Tenant,
    check_adapter_name,
)
from adapter_sync.registry.adapter_rows import (
    SELECT_ADAPTERS,
    SELECT_DESIRED,
    adapter_of,
    adapter_values,
    desired_of,
    revision_values,
)
from adapter_sync.registry.base_models import require_base_model_for_adapters
from adapter_sync.registry.database import select_change_counter
from adapter_sync.registry.fetches import count_new, delete_failed_fetch, take_fetch
from adapter_sync.registry.keys import new_id
from adapter_sync.registry.pages import newest_first, page_of
from adapter_sync.registry.revisions import delete_revisions, insert_revision, require_match
from adapter_sync.registry.tables import NOT_DELETING, adapters, revisions
from adapter_sync.registry.tenants import require_live
from adapter_sync.tiers import Tier, Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterState:
    """A status, with the reason when it is a failure."""

    status: AdapterStatus
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFilter:
    """Which adapters; None leaves a question open."""

    tenant_id: str | None = None
    base_model: str | None = None
    status: AdapterStatus | None = None


def put_adapter(
    connection: Connection,
    *,
    tenant: Tenant,
    name: str,
    base_model: str,
    revision: Revision,
    overwrite: Overwrite,
    fetched_id: str | None,
    tiers: Tiers,
) -> Adapter:
    """A new adapter, or a new revision of the one of that name; loading if the engine lacks it.

    Raises InvalidNameError, TenantNotFoundError, BaseModelNotFoundError,
    AdaptersNotSupportedError, AdapterExistsError, AdapterLimitError, PreconditionFailedError,
    FetchGoneError, TierMissingError.
    """
    if fetched_id is not None:
        take_fetch(connection, fetched_id)
    check_adapter_name(name)
    require_live(connection, tenant)
    require_base_model_for_adapters(connection, base_model, tenant.id)
    known = find_adapter(connection, tenant_id=tenant.id, base_model=base_model, name=name)
    require_match(overwrite.if_match, known)
    delete_failed_fetch(connection, tenant_id=tenant.id, base_model=base_model, name=name)
    if known is None:
        require_room(connection, tenant, tiers.of(tenant))
        return _insert_adapter(
            connection,
            adapter_id=fetched_id or new_id("adp_"),
            tenant=tenant,
            name=name,
            base_model=base_model,
            revision=revision,
        )
    # A fetch promised its id: it can't end as a revision of an adapter that came meanwhile.
    if not overwrite.replace or fetched_id not in (None, known.id):
        raise AdapterExistsError(name=name, base_model=base_model, adapter_id=known.id)
    return insert_revision(connection, known, revision)


def select_adapter(connection: Connection, *, tenant_id: str, adapter_id: str) -> Adapter:
    """Raises AdapterNotFoundError, also for another tenant's and for one being deleted."""
    return _one(
        connection,
        and_(adapters.c.id == adapter_id, adapters.c.tenant_id == tenant_id, NOT_DELETING),
        asked_for=adapter_id,
    )


def find_adapter(
    connection: Connection, *, tenant_id: str, base_model: str, name: str
) -> Adapter | None:
    """The adapter of that name, unless it is being deleted."""
    return _find(connection, _has_name(tenant_id=tenant_id, base_model=base_model, name=name))


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


def select_every_adapter_page(
    connection: Connection, where: AdapterFilter, *, limit: int, after: str | None
) -> Page[Adapter]:
    """Every tenant's adapters, the newest first, those being deleted only when asked for.

    Raises UnknownCursorError.
    """
    wanted = {
        adapters.c.tenant_id: where.tenant_id,
        adapters.c.base_model: where.base_model,
        adapters.c.status: where.status and where.status.value,
    }
    query = SELECT_ADAPTERS.where(
        *(column == value for column, value in wanted.items() if value is not None)
    )
    if where.status is None:
        query = query.where(NOT_DELETING)
    query = newest_first(connection, query, adapters.c.created_at, adapters.c.id, after=after)
    return page_of(connection, query, adapter_of, limit=limit)


def select_any_adapter(connection: Connection, adapter_id: str) -> Adapter:
    """Whoever's it is. Raises AdapterNotFoundError, also for one being deleted."""
    return _one(connection, and_(adapters.c.id == adapter_id, NOT_DELETING), asked_for=adapter_id)


def select_desired(connection: Connection, base_model: str, since: int) -> DesiredChanges:
    """A base model's adapters in every status that changed after the change `since`."""
    of_base = adapters.c.base_model == base_model
    query = SELECT_DESIRED.where(of_base, adapters.c.changed_in > since).order_by(adapters.c.id)
    count = select(func.count()).select_from(adapters).where(of_base)
    return DesiredChanges(
        change=select_change_counter(connection),
        count=connection.execute(count).scalar_one(),
        adapters=tuple(desired_of(row) for row in connection.execute(query)),
    )


def mark_deleting(connection: Connection, adapter: Adapter) -> Adapter:
    """The adapter as it is now."""
    return _write(
        connection,
        replace(adapter, status=AdapterStatus.DELETING, error_code=None, error_message=None),
    )


def update_state(connection: Connection, adapter_id: str, digest: str, state: AdapterState) -> bool:
    """Whether anything changed: not for a content that is neither the newest nor serving."""
    adapter = _find(connection, and_(adapters.c.id == adapter_id, NOT_DELETING))
    if adapter is None:
        return False
    changed = with_state(adapter, digest, state)
    if changed == adapter:
        return False
    _write(connection, changed)
    return True


def with_state(adapter: Adapter, digest: str, state: AdapterState) -> Adapter:
    """The adapter after the engine's word on one of its contents."""
    serving = adapter.serving
    if serving is not None and serving.digest == digest and state.status is AdapterStatus.FAILED:
        serving = None
    if adapter.revision.digest != digest:
        return replace(adapter, serving=serving)
    return replace(
        adapter,
        status=state.status,
        error_code=state.error_code,
        error_message=state.error_message,
        serving=adapter.revision if state.status is AdapterStatus.READY else serving,
    )


def delete_deleting(connection: Connection, adapter_id: str) -> Sequence[str] | None:
    """Remove a deleting adapter's rows; the digests that no revision uses any more.

    None when there is no such adapter or it is not deleting.
    """
    is_it = and_(adapters.c.id == adapter_id, adapters.c.status == AdapterStatus.DELETING.value)
    if connection.scalar(select(adapters.c.id).where(is_it)) is None:
        return None
    unused = delete_revisions(connection, revisions.c.adapter_id == adapter_id)
    connection.execute(delete(adapters).where(adapters.c.id == adapter_id))
    return unused


def _insert_adapter(
    connection: Connection,
    *,
    adapter_id: str,
    tenant: Tenant,
    name: str,
    base_model: str,
    revision: Revision,
) -> Adapter:
    now = datetime.now(UTC)
    adapter = Adapter(
        id=adapter_id,
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


def require_room(connection: Connection, tenant: Tenant, tier: Tier) -> None:
    """Raises AdapterLimitError when the tenant has as many adapters as its tier allows.

    Those on their way here count.
    """
    of_tenant = and_(adapters.c.tenant_id == tenant.id, NOT_DELETING)
    count = connection.scalar(select(func.count()).select_from(adapters).where(of_tenant)) or 0
    if count + count_new(connection, tenant.id) >= tier.max_adapters:
        raise AdapterLimitError(limit=tier.max_adapters, tier=tier.name)


def _has_name(*, tenant_id: str, base_model: str, name: str) -> ColumnElement[bool]:
    return and_(
        adapters.c.tenant_id == tenant_id,
        adapters.c.base_model == base_model,
        adapters.c.name == name,
        NOT_DELETING,
    )


def _find(connection: Connection, where: ColumnElement[bool]) -> Adapter | None:
    row = connection.execute(SELECT_ADAPTERS.where(where)).first()
    return None if row is None else adapter_of(row)


def _one(connection: Connection, where: ColumnElement[bool], *, asked_for: str) -> Adapter:
    adapter = _find(connection, where)
    if adapter is None:
        raise AdapterNotFoundError(adapter_id=asked_for)
    return adapter


def _write(connection: Connection, adapter: Adapter) -> Adapter:
    """The adapter as it is written, updated now."""
    written = replace(adapter, updated_at=datetime.now(UTC))
    connection.execute(
        update(adapters).where(adapters.c.id == adapter.id).values(adapter_values(written))
    )
    return written
