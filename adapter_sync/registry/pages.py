"""Lists in pages: the newest first, going on after an id. Knows no table."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, Row, Select, and_, or_, select

from adapter_sync.errors import UnknownCursorError
from adapter_sync.record import Item, Page


def newest_first(
    connection: Connection,
    query: Select[Any],
    created_at: Column[datetime],
    id_: Column[str],
    *,
    after: str | None,
) -> Select[Any]:
    """The query in order, from behind the row of that id. Raises UnknownCursorError.

    The id decides between rows of one moment. A row that left the query since, but not its table,
    is still a place to go on from.
    """
    ordered = query.order_by(created_at.desc(), id_)
    if after is None:
        return ordered
    moment = connection.scalar(select(created_at).where(id_ == after))
    if moment is None:
        raise UnknownCursorError(after=after)
    return ordered.where(or_(created_at < moment, and_(created_at == moment, id_ > after)))


def page_of(
    connection: Connection,
    query: Select[Any],
    item_of: Callable[[Row[Any]], Item],
    *,
    limit: int | None,
) -> Page[Item]:
    """The first `limit` rows of a query, or all."""
    if limit is not None:
        query = query.limit(limit + 1)
    items = tuple(item_of(row) for row in connection.execute(query))
    return Page(items=items[:limit], has_more=limit is not None and len(items) > limit)
