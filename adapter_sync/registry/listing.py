"""Pages of a tenant's adapters, those on their way here among them; inside a transaction."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from sqlalchemy import Column, Connection, Select, select, tuple_

from adapter_sync.errors import AdapterNotFoundError
from adapter_sync.fetches import Fetch
from adapter_sync.record import Adapter, Page
from adapter_sync.registry.adapter_rows import SELECT_ADAPTERS, adapter_of
from adapter_sync.registry.fetches import fetch_of
from adapter_sync.registry.tables import NOT_DELETING, adapters, fetches

Place: TypeAlias = tuple[datetime, str]
"""Where something stands in the order: its time of creation, then its id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterQuery:
    """Which of a tenant's adapters to list: at most `limit`, those that follow `after` (an id)."""

    limit: int
    after: str | None = None
    oldest_first: bool = False
    base_model: str | None = None
    status: str | None = None


def select_adapter_page(
    connection: Connection, tenant_id: str, query: AdapterQuery
) -> Page[Adapter | Fetch]:
    """A part of a tenant's adapters. Raises AdapterNotFoundError when `after` is none of them."""
    after = None if query.after is None else _place(connection, tenant_id, query.after)
    found: list[Adapter | Fetch] = [
        *_adapters(connection, tenant_id, query, after),
        *_fetches(connection, tenant_id, query, after),
    ]
    found.sort(key=lambda each: (each.created_at, each.id), reverse=not query.oldest_first)
    return Page(items=tuple(found[: query.limit]), has_more=len(found) > query.limit)


def _adapters(
    connection: Connection, tenant_id: str, query: AdapterQuery, after: Place | None
) -> list[Adapter]:
    where = [NOT_DELETING, adapters.c.tenant_id == tenant_id]
    if query.base_model is not None:
        where.append(adapters.c.base_model == query.base_model)
    if query.status is not None:
        where.append(adapters.c.status == query.status)
    columns = (adapters.c.created_at, adapters.c.id)
    statement = _page(SELECT_ADAPTERS.where(*where), columns, query, after)
    return [adapter_of(row) for row in connection.execute(statement)]


def _fetches(
    connection: Connection, tenant_id: str, query: AdapterQuery, after: Place | None
) -> list[Fetch]:
    """Those of new adapters: an adapter whose next revision is fetched is listed itself."""
    here = select(adapters.c.id).where(adapters.c.tenant_id == tenant_id, NOT_DELETING)
    where = [fetches.c.tenant_id == tenant_id, fetches.c.adapter_id.not_in(here)]
    if query.base_model is not None:
        where.append(fetches.c.base_model == query.base_model)
    if query.status is not None:
        where.append(fetches.c.stage == query.status)
    columns = (fetches.c.created_at, fetches.c.adapter_id)
    statement = _page(select(fetches).where(*where), columns, query, after)
    return [fetch_of(row) for row in connection.execute(statement)]


def _page(
    statement: Select[Any],
    columns: tuple[Column[datetime], Column[str]],
    query: AdapterQuery,
    after: Place | None,
) -> Select[Any]:
    """In order, and one more than asked for: it tells whether there are more."""
    place = tuple_(*columns)
    if after is not None:
        statement = statement.where(place > after if query.oldest_first else place < after)
    order = [column if query.oldest_first else column.desc() for column in columns]
    return statement.order_by(*order).limit(query.limit + 1)


def _place(connection: Connection, tenant_id: str, listed_id: str) -> Place:
    """Raises AdapterNotFoundError."""
    of_adapter = select(adapters.c.created_at, adapters.c.id).where(
        adapters.c.id == listed_id, adapters.c.tenant_id == tenant_id, NOT_DELETING
    )
    of_fetch = select(fetches.c.created_at, fetches.c.adapter_id).where(
        fetches.c.adapter_id == listed_id, fetches.c.tenant_id == tenant_id
    )
    row = connection.execute(of_adapter).first() or connection.execute(of_fetch).first()
    if row is None:
        raise AdapterNotFoundError(adapter_id=listed_id)
    created_at, found_id = row
    return created_at, found_id
