"""The whole registry from one database into another, whichever kind they are."""

from sqlalchemy import Connection, delete, func, select, text
from sqlalchemy.dialects import postgresql

from adapter_sync.registry.migrations import upgrade
from adapter_sync.registry.tables import audit, change_counter, installation, metadata

_ROWS_AT_ONCE = 1000
_MADE_EMPTY = (change_counter, installation)
"""What has rows also in a registry that nobody has used."""


def copy_rows(source: Connection, target: Connection) -> None:
    """Copy every row; the target is fresh. Both are at the newest schema."""
    for table in _MADE_EMPTY:
        target.execute(delete(table))
    for table in metadata.sorted_tables:
        found = source.execution_options(yield_per=_ROWS_AT_ONCE).execute(select(table))
        for rows in found.mappings().partitions():
            target.execute(table.insert(), [dict(row) for row in rows])
    if target.dialect.name == postgresql.dialect.name:
        # The audit's numbers came with it: the next one has to be greater.
        last = select(func.coalesce(func.max(audit.c.id), 0) + 1).scalar_subquery()
        sequence = func.pg_get_serial_sequence(audit.name, audit.c.id.name)
        target.execute(select(func.setval(sequence, last, False)))  # noqa: FBT003 - SQL's


def make_anew(connection: Connection) -> None:
    """Drop the tables, also the append-only audit, and make them again."""
    metadata.drop_all(connection)
    connection.execute(text("DROP TABLE alembic_version"))
    if connection.dialect.name == postgresql.dialect.name:
        connection.execute(text("DROP FUNCTION refuse_audit_change"))
    upgrade(connection)


def is_empty(connection: Connection) -> bool:
    """Whether nobody has put anything in."""
    return not any(
        connection.execute(select(table).limit(1)).first()
        for table in metadata.sorted_tables
        if table not in _MADE_EMPTY
    )
