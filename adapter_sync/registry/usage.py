"""Usage, inside a transaction of the caller: added up in the database, each batch once."""

from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from adapter_sync.record import Usage, UsageBatch, UsageBucket, UsageField
from adapter_sync.registry.tables import adapters, usage, usage_writers

_NONE = ""
_WRITERS_KEPT = timedelta(days=30)
_KEY_COLUMNS = tuple(usage.primary_key.columns)
_SUMS = (usage.c.requests, usage.c.prompt_tokens, usage.c.completion_tokens)
_COLUMNS = MappingProxyType(
    {
        UsageField.DAY: usage.c.day,
        UsageField.MODEL: usage.c.requested_model,
        UsageField.ADAPTER: usage.c.adapter_id,
        UsageField.KEY: usage.c.key_id,
    }
)


def add_usage(connection: Connection, batch: UsageBatch) -> bool:
    """Whether the batch was not there already."""
    if not _is_next(connection, batch):
        return False
    if rows := _rows(batch):
        connection.execute(adding(connection.dialect.name), rows)
    for adapter_id, used_at in sorted(batch.adapters_used_at.items()):
        is_older = or_(adapters.c.last_used_at.is_(None), adapters.c.last_used_at < used_at)
        connection.execute(
            update(adapters)
            .where(adapters.c.id == adapter_id, is_older)
            .values(last_used_at=used_at)
        )
    return True


def select_usage(
    connection: Connection,
    *,
    tenant_id: str,
    first: date,
    last: date,
    group_by: Collection[UsageField],
) -> list[UsageBucket]:
    """What a tenant used from the first day to the last one, both included."""
    fields = [field for field in UsageField if field in group_by]
    columns = [_COLUMNS[field] for field in fields]
    query = (
        select(*columns, *(func.sum(column).label(column.name) for column in _SUMS))
        .where(usage.c.tenant_id == tenant_id, usage.c.day.between(first, last))
        .group_by(*columns)
        .order_by(*columns)
    )
    rows = connection.execute(query)
    # Grouped by nothing, no usage is a row of NULLs.
    return [_bucket(row, fields) for row in rows if row.requests is not None]


def adding(dialect: str) -> Any:
    """The statement that adds a row's numbers to what is there; the same SQL in both dialects."""
    make: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
    statement = make[dialect](usage)
    return statement.on_conflict_do_update(
        index_elements=_KEY_COLUMNS,
        set_={column.name: column + statement.excluded[column.name] for column in _SUMS},
    )


def _is_next(connection: Connection, batch: UsageBatch) -> bool:
    """Note the writer's batch. False when it is there: a commit whose answer was lost."""
    now = datetime.now(UTC)
    is_writer = usage_writers.c.id == batch.writer
    noted = connection.execute(
        update(usage_writers)
        .where(is_writer, usage_writers.c.last_batch < batch.number)
        .values(last_batch=batch.number, written_at=now)
    )
    if noted.rowcount > 0:
        return True
    if connection.scalar(select(usage_writers.c.id).where(is_writer)) is not None:
        return False
    # A process that has just started: the rows of those that are long gone may go.
    connection.execute(
        delete(usage_writers).where(usage_writers.c.written_at < now - _WRITERS_KEPT)
    )
    connection.execute(
        insert(usage_writers).values(id=batch.writer, last_batch=batch.number, written_at=now)
    )
    return True


def _rows(batch: UsageBatch) -> list[Mapping[str, object]]:
    return [
        {
            "tenant_id": key.tenant_id,
            "day": key.day,
            "requested_model": key.requested_model,
            "adapter_id": key.adapter_id or _NONE,
            "key_id": key.key_id or _NONE,
            "requests": used.requests,
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
        }
        for key, used in batch.used.items()
    ]


def _bucket(row: Row[Any], fields: Collection[UsageField]) -> UsageBucket:
    return UsageBucket(
        group={field: value or None for field, value in zip(fields, row, strict=False)},
        usage=Usage(
            requests=int(row.requests),
            prompt_tokens=int(row.prompt_tokens),
            completion_tokens=int(row.completion_tokens),
        ),
    )
