"""Registries of every earlier schema, with rows in every table, brought to the newest one."""

from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, select, update
from sqlalchemy.engine import make_url

from adapter_sync.registry import Registry, migrations
from adapter_sync.registry.migrations import upgrade
from adapter_sync.registry.tables import change_counter, metadata

THEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FETCHED = {"base_model": "tiny", "name": "legal", "created_at": THEN, "updated_at": THEN}
ROWS: Mapping[str, Mapping[str, object]] = {
    "tenants": {"id": "ten_1", "name": "acme", "tier": "shared", "created_at": THEN},
    "api_keys": {
        "id": "0" * 20,
        "tenant_id": "ten_1",
        "key_sha256": "e" * 64,
        "created_at": THEN,
        "name": "laptop",
        "expires_at": THEN,
        "revoked_at": THEN,
        "last_used_at": THEN,
    },
    "base_models": {
        "name": "tiny",
        "max_lora_rank": 8,
        "max_model_len": 64,
        "tensor_shapes": {"x": [1, 2]},
        "takes_adapters": True,
    },
    "reservations": {"base_model": "tiny", "tenant_id": "ten_1"},
    "adapters": {
        "id": "adp_1",
        "tenant_id": "ten_1",
        "base_model": "tiny",
        "name": "finance",
        "revision_number": 1,
        "serving_revision": 1,
        "status": "ready",
        "created_at": THEN,
        "updated_at": THEN,
        "last_used_at": THEN,
        "changed_in": 3,
    },
    "revisions": {
        "adapter_id": "adp_1",
        "number": 1,
        "digest": "d" * 64,
        "config_blob": "c" * 64,
        "weights_blob": "b" * 64,
        "size_bytes": 1 << 40,
        "rank": 4,
        "lora_alpha": 8.5,
        "target_modules": ["q_proj"],
        "warnings": ["w"],
        "created_at": THEN,
        "source": {"type": "upload"},
    },
    "fetches": {
        "adapter_id": "adp_2",
        "tenant_id": "ten_1",
        **FETCHED,
        "replace": False,
        "repo": "acme/legal",
        "revision": "main",
        "commit": "f" * 40,
        "stage": "fetching",
        "weights_bytes": 5,
        "config_bytes": 6,
        "bytes_done": 1,
    },
    "aliases": {
        "tenant_id": "ten_1",
        "name": "latest",
        "created_at": THEN,
        "updated_at": THEN,
        "targets": [{"base_model": "tiny", "adapter_name": "finance", "weight": 1}],
    },
    "change_counter": {"value": 7},
    "audit": {
        "id": 1,
        "at": THEN,
        "actor": "loractl",
        "action": "tenant.created",
        "tenant": "acme",
        "object": "ten_1",
        "details": {"tier": "shared"},
    },
    "usage": {
        "tenant_id": "ten_1",
        "day": date(2026, 1, 2),
        "requested_model": "tiny",
        "adapter_id": "",
        "key_id": "",
        "requests": 1,
        "prompt_tokens": 2,
        "completion_tokens": 3,
    },
    "usage_writers": {"id": "w", "last_batch": 9, "written_at": THEN},
    "nodes": {
        "id": "nod_1",
        "host": "here",
        "triton": "127.0.0.1:8000",
        "version": "1",
        "base_models": [],
        "started_at": THEN,
        "heartbeat_at": THEN,
    },
    "residencies": {"adapter_id": "adp_1", "node_id": "nod_1", "residency": "gpu"},
    "installation": {"id": "a" * 32},
}


def steps() -> list[str]:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    return sorted(each.revision for each in ScriptDirectory.from_config(config).walk_revisions())


def fill(connection: Connection) -> dict[str, dict[str, object]]:
    """A row in each table that there is at this step; what was put in."""
    schema, rows = inspect(connection), {}
    for table in metadata.sorted_tables:
        if schema.has_table(table.name):
            columns = {column["name"] for column in schema.get_columns(table.name)}
            row = {name: value for name, value in ROWS[table.name].items() if name in columns}
            # The counter has its one row from the beginning.
            statement = update(table) if table is change_counter else table.insert()
            connection.execute(statement.values(row))
            rows[table.name] = row
    return rows


@pytest.mark.parametrize("step", steps())
def test_an_earlier_schema_comes_forward_with_all_its_rows(step: str, registry_url: str) -> None:
    assert ROWS.keys() == metadata.tables.keys()
    url = make_url(registry_url)
    if url.get_backend_name() == "sqlite":
        Path(str(url.database)).parent.mkdir()
    engine = create_engine(url)
    with engine.begin() as connection:
        upgrade(connection, step)
        rows = fill(connection)
    with closing(Registry.open(registry_url)) as registry:
        assert [adapter.name for adapter in registry.adapters("ten_1")] == ["finance"]
        [adapter] = registry.adapters("ten_1")
        assert adapter.serving == adapter.revision
        assert [tenant.name for tenant in registry.tenants()] == ["acme"]
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        for name, row in rows.items():
            table = metadata.tables[name]
            found = connection.execute(select(*(table.c[column] for column in row))).mappings()
            assert [dict(each) for each in found] == [row]
    engine.dispose()
