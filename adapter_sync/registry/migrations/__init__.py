"""The registry's schema, one file a step below versions/, run by alembic.

A new step is written by hand and must not import the tables: it has to do the same for ever.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from adapter_sync.errors import ConfigurationError


def upgrade(connection: Connection, step: str = "head") -> None:
    """Bring the schema to a step, by default the newest, inside the connection's transaction.

    Raises ConfigurationError when the database was made by a newer release.
    """
    config = Config(attributes={"connection": connection})
    folder = str(Path(__file__).parent)
    config.set_main_option("script_location", folder.replace("%", "%%"))
    try:
        command.upgrade(config, step)
    except CommandError as error:
        raise ConfigurationError(
            f"The registry's schema is not one that this release knows: {error}"
        ) from error
