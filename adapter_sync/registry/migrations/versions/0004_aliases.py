"""Aliases, and base models that take no adapters."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the aliases' table; the base models there so far take adapters."""
    op.create_table(
        "aliases",
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("targets", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name=op.f("pk_aliases")),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
            name=op.f("fk_aliases_tenant_id_tenants"),
            ondelete="CASCADE",
        ),
    )
    op.add_column(
        "base_models",
        sa.Column("takes_adapters", sa.Boolean, nullable=False, server_default=sa.true()),
    )
