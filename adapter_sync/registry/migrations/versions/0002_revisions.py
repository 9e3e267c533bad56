"""Which revision of an adapter answers requests, beside the newest one."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Until now an adapter had one revision, which answered requests once it was ready."""
    op.add_column("adapters", sa.Column("serving_revision", sa.Integer))
    op.execute("UPDATE adapters SET serving_revision = revision_number WHERE status = 'ready'")
