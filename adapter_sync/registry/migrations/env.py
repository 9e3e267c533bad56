"""What alembic runs around the steps: they take the caller's connection and its transaction.

SQLite's DDL is transactional once the transaction begins explicitly, as the registry's do, so an
upgrade that is killed leaves nothing behind.
"""

from alembic import context

from adapter_sync.registry.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
