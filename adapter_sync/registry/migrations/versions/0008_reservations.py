"""Base models that are reserved to some tenants."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Until now every base model was for all tenants."""
    op.create_table(
        "reservations",
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("base_model", "tenant_id", name=op.f("pk_reservations")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_reservations_tenant_id_tenants")
        ),
    )
