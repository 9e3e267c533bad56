"""The registry's tables. Plain SQLAlchemy Core that means the same on SQLite and PostgreSQL."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    literal_column,
    true,
)

from adapter_sync.record import AdapterStatus


class UtcDateTime(TypeDecorator[datetime]):
    """An aware datetime, kept and given back in UTC: SQLite would forget its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Raises ValueError for a datetime without a zone."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """The same moment in UTC."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# A deleted tenant's row stays, for adapters that still drain and for what else names it. It gives
# its name free by taking its id for one, which no live tenant can be called: SQLite could change
# the unique constraint into a partial index only by remaking the table, and that would cascade.
tenants = Table(
    "tenants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("tier", String(32), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("deleted_at", UtcDateTime),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("key_sha256", String(64), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("name", String(64)),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
)

base_models = Table(
    "base_models",
    metadata,
    Column("name", Text, primary_key=True),
    Column("max_lora_rank", Integer, nullable=False),
    Column("max_model_len", Integer, nullable=False),
    Column("tensor_shapes", JSON, nullable=False),
    Column("takes_adapters", Boolean, nullable=False, server_default=true()),
)

# A base model without any is for all tenants. It is no foreign key: a reservation outlives the
# removal of its base model, and what comes back under the name is as reserved as before.
reservations = Table(
    "reservations",
    metadata,
    Column("base_model", Text, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
)

# base_model is no foreign key: an adapter outlives the removal of its base model.
adapters = Table(
    "adapters",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("base_model", Text, nullable=False),
    Column("name", String(64), nullable=False),
    Column("revision_number", Integer, nullable=False),
    Column("serving_revision", Integer),
    Column("status", String(16), nullable=False),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime),
    # What the change counter was at the last change that concerns the engine.
    Column("changed_in", BigInteger, nullable=False, server_default="0"),
    Index("ix_adapters_changes", "base_model", "changed_in"),
)

# The value stands in the statement, not in a parameter: only then does SQLite see that a query
# asks for no more rows than the partial index holds.
NOT_DELETING = adapters.c.status != literal_column(f"'{AdapterStatus.DELETING.value}'")

Index(
    "uq_adapters_live_name",
    adapters.c.tenant_id,
    adapters.c.base_model,
    adapters.c.name,
    unique=True,
    sqlite_where=NOT_DELETING,
    postgresql_where=NOT_DELETING,
)

revisions = Table(
    "revisions",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("config_blob", String(64), nullable=False, index=True),
    Column("weights_blob", String(64), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("lora_alpha", Float, nullable=False),
    Column("target_modules", JSON, nullable=False),
    Column("warnings", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("source", JSON),
)

fetches = Table(
    "fetches",
    metadata,
    Column("adapter_id", String(32), primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("base_model", Text, nullable=False),
    Column("name", String(64), nullable=False),
    Column("replace", Boolean, nullable=False),
    Column("if_match", JSON(none_as_null=True)),
    Column("repo", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("subfolder", Text),
    Column("commit", String(40), nullable=False),
    Column("weights_bytes", BigInteger, nullable=False),
    Column("config_bytes", BigInteger, nullable=False),
    Column("sealed_token", Text),
    Column("stage", String(16), nullable=False),
    Column("bytes_done", BigInteger, nullable=False),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Index("uq_fetches_name", "tenant_id", "base_model", "name", unique=True),
)

# The targets are read and replaced together, and name adapters that may come and go.
aliases = Table(
    "aliases",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("targets", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

change_counter = Table(
    "change_counter",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)

# Append-only: its migration has triggers that refuse everything but INSERT. The tenant is a name,
# not a foreign key, because names are what an operator knows and they are given free again.
audit = Table(
    "audit",
    metadata,
    # SQLite numbers rows only in an INTEGER; as none is ever deleted, the numbers only grow.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("action", String(32), nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("object", String(64), nullable=False),
    Column("details", JSON, nullable=False),
)

# No foreign keys: usage outlives the keys and adapters that it was counted for. What is missing
# is '', because a NULL is never in conflict with another.
usage = Table(
    "usage",
    metadata,
    Column("tenant_id", String(32), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("requested_model", Text, primary_key=True),
    Column("adapter_id", String(32), primary_key=True),
    Column("key_id", String(32), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
)

# A row for each process that writes usage: its last batch, so that none is added twice.
usage_writers = Table(
    "usage_writers",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("last_batch", BigInteger, nullable=False),
    Column("written_at", UtcDateTime, nullable=False, index=True),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("host", Text, nullable=False),
    Column("triton", Text, nullable=False),
    Column("version", String(32), nullable=False),
    Column("base_models", JSON, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("heartbeat_at", UtcDateTime, nullable=False),
)

# Only what is nearer than the disk has a row: as many as the engines' memory holds, not one for
# each adapter and node.
residencies = Table(
    "residencies",
    metadata,
    Column("adapter_id", ForeignKey("adapters.id", ondelete="CASCADE"), primary_key=True),
    Column("node_id", ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True),
    Column("residency", String(8), nullable=False),
)

# One row: which blob store belongs to this registry. The store has the same id in a file.
installation = Table("installation", metadata, Column("id", String(32), primary_key=True))
