"""The id that a registry shares with its blob store; inside a transaction of the caller."""

from sqlalchemy import Connection, insert, select

from adapter_sync.registry.tables import installation, revisions


def select_installation_id(connection: Connection) -> str | None:
    """The id, or None before the first start that writes one."""
    return connection.scalar(select(installation.c.id))


def insert_installation_id(connection: Connection, installation_id: str) -> None:
    """Write the id; there is none yet."""
    connection.execute(insert(installation).values(id=installation_id))


def select_named_blobs(connection: Connection) -> set[str]:
    """The digest of every blob that a revision names."""
    rows = connection.execute(select(revisions.c.weights_blob, revisions.c.config_blob))
    return {digest for row in rows for digest in row}
