"""Usage, the processes that write it, and when an adapter was last used."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables and the column."""
    op.create_table(
        "usage",
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("requested_model", sa.Text, nullable=False),
        sa.Column("adapter_id", sa.String(32), nullable=False),
        sa.Column("key_id", sa.String(32), nullable=False),
        sa.Column("requests", sa.BigInteger, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(
            "tenant_id",
            "day",
            "requested_model",
            "adapter_id",
            "key_id",
            name=op.f("pk_usage"),
        ),
    )
    op.create_table(
        "usage_writers",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("last_batch", sa.BigInteger, nullable=False),
        sa.Column("written_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_usage_writers")),
    )
    op.create_index(op.f("ix_usage_writers_written_at"), "usage_writers", ["written_at"])
    op.add_column("adapters", sa.Column("last_used_at", sa.DateTime(timezone=True)))
