"""Fetches from a Hugging Face repo, inside a transaction of the caller.

A fetch is there until its adapter is, or until somebody deletes it; a failed one says why.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, insert, select, update

from adapter_sync.errors import (
    AdapterExistsError,
    FetchGoneError,
    FetchInProgressError,
)
from adapter_sync.fetches import Fetch, FetchStage, HubRepo, PinnedRepo
from adapter_sync.record import Adapter, Overwrite, Tenant
from adapter_sync.registry.keys import new_id
from adapter_sync.registry.revisions import require_match
from adapter_sync.registry.tables import NOT_DELETING, adapters, fetches

_RUNNING = (FetchStage.FETCHING.value, FetchStage.VALIDATING.value)
_FAILED = fetches.c.stage == FetchStage.FAILED.value


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedFetch:
    """A fetch to be done now, with what only its doer needs."""

    fetch: Fetch
    overwrite: Overwrite
    sealed_token: str | None


def insert_fetch(
    connection: Connection,
    *,
    tenant: Tenant,
    name: str,
    base_model: str,
    pinned: PinnedRepo,
    overwrite: Overwrite,
    sealed_token: str | None,
    known: Adapter | None,
) -> Fetch:
    """A pending fetch of a new adapter, or of a new revision of the `known` one of that name.

    A failed fetch of the same name gives way. Raises FetchInProgressError, AdapterExistsError,
    PreconditionFailedError.
    """
    require_match(overwrite.if_match, known)
    if known is not None and not overwrite.replace:
        raise AdapterExistsError(name=name, base_model=base_model, adapter_id=known.id)
    of_name = _has_name(tenant_id=tenant.id, base_model=base_model, name=name)
    connection.execute(delete(fetches).where(of_name, _FAILED))
    running = connection.scalar(select(fetches.c.adapter_id).where(of_name))
    if running is not None:
        raise FetchInProgressError(name=name, base_model=base_model, adapter_id=running)
    now = datetime.now(UTC)
    fetch = Fetch(
        id=new_id("adp_") if known is None else known.id,
        tenant_id=tenant.id,
        name=name,
        base_model=base_model,
        pinned=pinned,
        stage=FetchStage.PENDING,
        bytes_done=0,
        error_code=None,
        error_message=None,
        created_at=now,
        updated_at=now,
    )
    connection.execute(insert(fetches).values(_values(fetch, overwrite, sealed_token)))
    return fetch


def select_fetch(connection: Connection, *, tenant_id: str, adapter_id: str) -> Fetch | None:
    """The tenant's fetch for that adapter, if there is one."""
    return _first(
        connection, and_(fetches.c.adapter_id == adapter_id, fetches.c.tenant_id == tenant_id)
    )


def select_fetch_named(
    connection: Connection, *, tenant_id: str, base_model: str, name: str
) -> Fetch | None:
    """The tenant's fetch of an adapter of that name, if there is one."""
    return _first(connection, _has_name(tenant_id=tenant_id, base_model=base_model, name=name))


def select_fetches(connection: Connection, tenant_id: str) -> list[Fetch]:
    """The tenant's fetches, newest first."""
    query = select(fetches).where(fetches.c.tenant_id == tenant_id)
    query = query.order_by(fetches.c.created_at.desc(), fetches.c.adapter_id)
    return [fetch_of(row) for row in connection.execute(query)]


def is_pending(connection: Connection) -> bool:
    """Whether a fetch waits to be done."""
    query = select(fetches.c.adapter_id).where(fetches.c.stage == FetchStage.PENDING.value)
    return connection.scalar(query.limit(1)) is not None


def claim_fetch(connection: Connection) -> ClaimedFetch | None:
    """A pending fetch, fetching from now on; None when there is none.

    Of the tenants' with the fewest under way the oldest, so that one with many holds up no other.
    """
    other = fetches.alias()
    running_of_tenant = (
        select(func.count())
        .where(other.c.tenant_id == fetches.c.tenant_id, other.c.stage.in_(_RUNNING))
        .correlate(fetches)
        .scalar_subquery()
    )
    query = select(fetches).where(fetches.c.stage == FetchStage.PENDING.value)
    query = query.order_by(running_of_tenant, fetches.c.created_at).limit(1)
    row = connection.execute(query).first()
    if row is None:
        return None
    _set(connection, row.adapter_id, stage=FetchStage.FETCHING.value, bytes_done=0)
    if_match = None if row.if_match is None else frozenset(row.if_match)
    return ClaimedFetch(
        fetch=fetch_of(row),
        overwrite=Overwrite(replace=row.replace, if_match=if_match),
        sealed_token=row.sealed_token,
    )


def reopen_fetches(connection: Connection) -> bool:
    """Make pending again what a process that is gone was fetching; whether there was any."""
    reopened = connection.execute(
        update(fetches)
        .where(fetches.c.stage.in_(_RUNNING))
        .values(stage=FetchStage.PENDING.value, bytes_done=0)
    )
    return reopened.rowcount > 0


def set_progress(
    connection: Connection, adapter_id: str, stage: FetchStage, bytes_done: int
) -> None:
    """Raises FetchGoneError when somebody has deleted the fetch."""
    if not _set(connection, adapter_id, stage=stage.value, bytes_done=bytes_done):
        raise FetchGoneError(adapter_id=adapter_id)


def fail_fetch(connection: Connection, adapter_id: str, *, code: str | None, message: str) -> None:
    """Say why it failed, and forget the token."""
    _set(
        connection,
        adapter_id,
        stage=FetchStage.FAILED.value,
        error_code=code,
        error_message=message,
        sealed_token=None,
    )


def take_fetch(connection: Connection, adapter_id: str) -> None:
    """Remove the fetch whose adapter is here. Raises FetchGoneError when it was deleted."""
    if not delete_fetch(connection, adapter_id):
        raise FetchGoneError(adapter_id=adapter_id)


def delete_fetch(connection: Connection, adapter_id: str) -> bool:
    """Whether there was one."""
    gone = connection.execute(delete(fetches).where(fetches.c.adapter_id == adapter_id))
    return gone.rowcount > 0


def delete_failed_fetch(
    connection: Connection, *, tenant_id: str, base_model: str, name: str
) -> None:
    """Forget a failure that an adapter of that name has made up for."""
    of_name = _has_name(tenant_id=tenant_id, base_model=base_model, name=name)
    connection.execute(delete(fetches).where(of_name, _FAILED))


def count_new(connection: Connection, tenant_id: str) -> int:
    """How many adapters of the tenant are on their way here, next revisions left out."""
    here = select(adapters.c.id).where(adapters.c.tenant_id == tenant_id, NOT_DELETING)
    query = select(func.count()).select_from(fetches)
    query = query.where(fetches.c.tenant_id == tenant_id, ~_FAILED)
    return connection.scalar(query.where(fetches.c.adapter_id.not_in(here))) or 0


def _has_name(*, tenant_id: str, base_model: str, name: str) -> ColumnElement[bool]:
    return and_(
        fetches.c.tenant_id == tenant_id,
        fetches.c.base_model == base_model,
        fetches.c.name == name,
    )


def _first(connection: Connection, where: ColumnElement[bool]) -> Fetch | None:
    row = connection.execute(select(fetches).where(where)).first()
    return None if row is None else fetch_of(row)


def _set(connection: Connection, adapter_id: str, **values: object) -> bool:
    changed = connection.execute(
        update(fetches)
        .where(fetches.c.adapter_id == adapter_id)
        .values(updated_at=datetime.now(UTC), **values)
    )
    return changed.rowcount > 0


def _values(fetch: Fetch, overwrite: Overwrite, sealed_token: str | None) -> dict[str, object]:
    source = fetch.pinned.source
    return {
        "adapter_id": fetch.id,
        "tenant_id": fetch.tenant_id,
        "base_model": fetch.base_model,
        "name": fetch.name,
        "replace": overwrite.replace,
        "if_match": None if overwrite.if_match is None else sorted(overwrite.if_match),
        "repo": source.repo,
        "revision": source.revision,
        "subfolder": source.subfolder,
        "commit": fetch.pinned.commit,
        "weights_bytes": fetch.pinned.weights_bytes,
        "config_bytes": fetch.pinned.config_bytes,
        "sealed_token": sealed_token,
        "stage": fetch.stage.value,
        "bytes_done": fetch.bytes_done,
        "error_code": fetch.error_code,
        "error_message": fetch.error_message,
        "created_at": fetch.created_at,
        "updated_at": fetch.updated_at,
    }


def fetch_of(row: Row[tuple[object, ...]]) -> Fetch:
    """The fetch in a row of its table."""
    return Fetch(
        id=row.adapter_id,
        tenant_id=row.tenant_id,
        name=row.name,
        base_model=row.base_model,
        pinned=PinnedRepo(
            source=HubRepo(repo=row.repo, revision=row.revision, subfolder=row.subfolder),
            commit=row.commit,
            weights_bytes=row.weights_bytes,
            config_bytes=row.config_bytes,
        ),
        stage=FetchStage(row.stage),
        bytes_done=row.bytes_done,
        error_code=row.error_code,
        error_message=row.error_message,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
