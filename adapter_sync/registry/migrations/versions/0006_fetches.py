"""Adapters on their way here from a Hugging Face repo, and where each revision came from."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Until now every revision was uploaded."""
    op.add_column("revisions", sa.Column("source", sa.JSON))
    op.create_table(
        "fetches",
        sa.Column("adapter_id", sa.String(32), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("replace", sa.Boolean, nullable=False),
        sa.Column("if_match", sa.JSON),
        sa.Column("repo", sa.Text, nullable=False),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("subfolder", sa.Text),
        sa.Column("commit", sa.String(40), nullable=False),
        sa.Column("weights_bytes", sa.BigInteger, nullable=False),
        sa.Column("config_bytes", sa.BigInteger, nullable=False),
        sa.Column("sealed_token", sa.Text),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("bytes_done", sa.BigInteger, nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", name=op.f("pk_fetches")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_fetches_tenant_id_tenants")
        ),
    )
    op.create_index("uq_fetches_name", "fetches", ["tenant_id", "base_model", "name"], unique=True)
