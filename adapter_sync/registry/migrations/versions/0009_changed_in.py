"""In which change an adapter was changed last, so that a look reads no more than is new."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What was there before is as old as can be."""
    op.add_column(
        "adapters", sa.Column("changed_in", sa.BigInteger, nullable=False, server_default="0")
    )
    op.drop_index(op.f("ix_adapters_base_model"), table_name="adapters")
    op.create_index("ix_adapters_changes", "adapters", ["base_model", "changed_in"])
