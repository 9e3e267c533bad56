"""Tenants, keys, base models, adapters, their revisions, and the change counter."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make every table."""
    _make_tenants()
    _make_base_models()
    _make_adapters()
    _make_revisions()
    _make_change_counter()


def _make_tenants() -> None:
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("tier", sa.String(32), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.ForeignKeyConstraint(
            ["tenant_id"],
            ["tenants.id"],
            name=op.f("fk_api_keys_tenant_id_tenants"),
            ondelete="CASCADE",
        ),
    )


def _make_base_models() -> None:
    op.create_table(
        "base_models",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("max_lora_rank", sa.Integer, nullable=False),
        sa.Column("max_model_len", sa.Integer, nullable=False),
        sa.Column("tensor_shapes", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_base_models")),
    )


def _make_adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("tenant_id", sa.String(32), nullable=False),
        sa.Column("base_model", sa.Text, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("revision_number", sa.Integer, nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapters")),
        sa.ForeignKeyConstraint(
            ["tenant_id"], ["tenants.id"], name=op.f("fk_adapters_tenant_id_tenants")
        ),
    )
    op.create_index(op.f("ix_adapters_base_model"), "adapters", ["base_model"])
    op.create_index(
        "uq_adapters_live_name",
        "adapters",
        ["tenant_id", "base_model", "name"],
        unique=True,
        sqlite_where=sa.text("status != 'deleting'"),
        postgresql_where=sa.text("status != 'deleting'"),
    )


def _make_revisions() -> None:
    op.create_table(
        "revisions",
        sa.Column("adapter_id", sa.String(32), nullable=False),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("config_blob", sa.String(64), nullable=False),
        sa.Column("weights_blob", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("rank", sa.Integer, nullable=False),
        sa.Column("lora_alpha", sa.Float, nullable=False),
        sa.Column("target_modules", sa.JSON, nullable=False),
        sa.Column("warnings", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("adapter_id", "number", name=op.f("pk_revisions")),
        sa.ForeignKeyConstraint(
            ["adapter_id"],
            ["adapters.id"],
            name=op.f("fk_revisions_adapter_id_adapters"),
            ondelete="CASCADE",
        ),
    )
    op.create_index(op.f("ix_revisions_config_blob"), "revisions", ["config_blob"])
    op.create_index(op.f("ix_revisions_weights_blob"), "revisions", ["weights_blob"])


def _make_change_counter() -> None:
    counter = op.create_table(
        "change_counter",
        sa.Column("id", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_change_counter")),
    )
    op.bulk_insert(counter, [{"id": 1, "value": 0}])
