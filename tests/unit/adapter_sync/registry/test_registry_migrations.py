import hashlib
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import inspect

import adapter_sync
from adapter_sync.errors import ConfigurationError
from adapter_sync.record import AdapterStatus, BaseModel
from adapter_sync.registry import Registry, migrations
from adapter_sync.registry.adapters import AdapterFilter
from adapter_sync.registry.database import Database
from adapter_sync.registry.migrations import upgrade
from adapter_sync.registry.sqlite import schema_lock, sqlite_engine, writing
from adapter_sync.registry.tables import metadata

OPENER = """
import sys
from adapter_sync.registry import Registry

print("ready", flush=True)
sys.stdin.readline()
registry = Registry.open(sys.argv[1])
print(registry.change_counter())
registry.close()
"""


FIRST_RELEASE_S_KEY = f"pk-{'0' * 20}-{'A' * 43}"
THEN = "2026-01-02 03:04:05.000000"
FIRST_RELEASE_S_ROWS: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("INSERT INTO tenants VALUES (?, ?, ?, ?)", ("ten_1", "acme", "reserved", THEN)),
    (
        "INSERT INTO api_keys VALUES (?, ?, ?, ?)",
        ("0" * 20, "ten_1", hashlib.sha256(FIRST_RELEASE_S_KEY.encode()).hexdigest(), THEN),
    ),
    (
        "INSERT INTO adapters VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ("adp_1", "ten_1", "tiny", "finance", 1, "ready", None, None, THEN, THEN),
    ),
    (
        "INSERT INTO revisions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ("adp_1", 1, "d" * 64, "c" * 64, "b" * 64, 1, 4, 8.0, "[]", "[]", THEN),
    ),
)


def tables(file: Path) -> set[str]:
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return {name for (name,) in rows}


def test_the_migrated_schema_is_the_tables_schema(registry_url: str) -> None:
    with closing(Database.open(registry_url)) as database, database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        names = {
            (table.name, index["name"])
            for table in metadata.sorted_tables
            for index in inspect(connection).get_indexes(table.name)
            # PostgreSQL's own, below a unique constraint.
            if "duplicates_constraint" not in index
        }
    assert ("adapters", "uq_adapters_live_name") in names
    assert names == {
        (table.name, index.name) for table in metadata.sorted_tables for index in table.indexes
    }


def test_a_fresh_registry_has_its_folder_tables_and_modes(
    registry_url: str, registry_file: Path
) -> None:
    assert not registry_file.parent.exists()
    with closing(Registry.open(registry_url)) as registry:
        assert registry.change_counter() == 0
        registry.change_counter()
    assert tables(registry_file) == {*metadata.tables, "alembic_version"}
    with closing(Database.open(registry_url)) as database, database.reading() as connection:
        modes = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "foreign_keys", "busy_timeout")
        ]
    assert modes == ["wal", 1, 30_000]


def test_a_registry_opened_again_keeps_what_it_had(registry_url: str) -> None:
    with closing(Registry.open(registry_url)) as registry:
        acme = registry.create_tenant("acme", "shared")
    with closing(Registry.open(registry_url)) as registry:
        assert registry.tenants() == [acme]


def make_registry_at(step: str, file: Path) -> None:
    file.parent.mkdir()
    engine = sqlite_engine(file)
    with writing(engine).begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        command.upgrade(config, step)
    engine.dispose()


def test_adapters_of_the_first_release_go_on_serving_when_they_did(
    registry_url: str, registry_file: Path
) -> None:
    make_registry_at("0001", registry_file)
    now, digest = "2026-01-01 00:00:00", hashlib.sha256().hexdigest()
    with closing(sqlite3.connect(registry_file)) as connection, connection:
        connection.execute("INSERT INTO tenants VALUES ('ten_1', 'acme', 'shared', ?)", (now,))
        for status in AdapterStatus:
            connection.execute(
                "INSERT INTO adapters (id, tenant_id, base_model, name, revision_number, status, "
                "created_at, updated_at) VALUES (?, 'ten_1', 'tiny', ?, 1, ?, ?, ?)",
                (f"adp_{status}", status, status, now, now),
            )
            connection.execute(
                "INSERT INTO revisions VALUES (?, 1, ?, ?, ?, 9, 8, 16.0, '[\"q_proj\"]', '[]', ?)",
                (f"adp_{status}", digest, digest, digest, now),
            )
    with closing(Registry.open(registry_url)) as registry:
        pages = {
            status: registry.every_adapter_page(AdapterFilter(status=status), limit=9)
            for status in AdapterStatus
        }
    adapters = {status: one for status, page in pages.items() for one in page.items}
    assert adapters.keys() == set(AdapterStatus)
    ready = adapters.pop(AdapterStatus.READY)
    assert ready.serving == ready.revision
    assert ready.revision.target_modules == ("q_proj",)
    assert [each.serving for each in adapters.values()] == [None] * len(adapters)


def test_the_first_release_s_tenants_keys_and_adapters_live_on(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    engine = sqlite_engine(file)
    with writing(engine).begin() as connection:
        upgrade(connection, "0001")
        for statement, row in FIRST_RELEASE_S_ROWS:
            connection.exec_driver_sql(statement, row)
    engine.dispose()
    with closing(Registry.open(f"sqlite:///{file}")) as registry:
        caller = registry.caller(FIRST_RELEASE_S_KEY)
        assert (caller.tenant.name, caller.tenant.tier) == ("acme", "reserved")
        assert registry.keys("acme").items == (caller.key,)
        assert (caller.key.expires_at, caller.key.last_used_at) == (None, None)
        assert [adapter.name for adapter in registry.adapters(caller.tenant.id)] == ["finance"]
        assert registry.audit().items == ()
        registry.delete_tenant("acme", with_adapters=True)
        assert registry.forget_adapter("adp_1") == ["b" * 64, "c" * 64]


def test_an_upgrade_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    engine = sqlite_engine(file)
    with writing(engine).begin() as connection:
        upgrade(connection)
        assert inspect(connection).has_table("adapters")
        connection.rollback()
    engine.dispose()
    assert tables(file) == set()
    Registry.open(f"sqlite:///{file}").close()


def test_base_models_of_the_first_schema_take_adapters(
    registry_url: str, registry_file: Path
) -> None:
    registry_file.parent.mkdir()
    engine = sqlite_engine(registry_file)
    with writing(engine).begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        command.upgrade(config, "0001")
        connection.exec_driver_sql("INSERT INTO base_models VALUES ('tiny', 8, 64, '{}')")
    engine.dispose()
    with closing(Registry.open(registry_url)) as registry:
        assert registry.base_model("tiny") == BaseModel(
            name="tiny", max_lora_rank=8, max_model_len=64, tensor_shapes={}, takes_adapters=True
        )


def test_four_processes_may_open_a_fresh_registry_at_once(
    registry_url: str, registry_file: Path
) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, registry_url],
            cwd=Path(adapter_sync.__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]
    assert answers == [("0\n", "")] * 4
    assert tables(registry_file) == {*metadata.tables, "alembic_version"}


def test_opening_waits_for_whoever_is_at_the_schema(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    with ThreadPoolExecutor(1) as threads:
        with schema_lock(file):
            opening = threads.submit(Registry.open, f"sqlite:///{file}")
            with pytest.raises(TimeoutError):
                opening.result(timeout=0.3)
            assert not file.exists()
        opening.result(timeout=10).close()
    assert tables(file) > {"adapters"}


def test_a_registry_of_a_newer_release_is_not_touched(
    registry_url: str, registry_file: Path
) -> None:
    Registry.open(registry_url).close()
    with closing(sqlite3.connect(registry_file)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="9999"):
        Registry.open(registry_url)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "mysql://me:secret@host/db",
        "postgresql+psycopg://me:secret@127.0.0.1:1/db",
        "registry.db",
    ],
)
def test_a_url_that_names_no_database_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        Registry.open(url)
    assert "secret" not in str(refusal.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "registry.db"
    file.write_text("not a database, but longer than the header of one is. " * 20)
    with pytest.raises(ConfigurationError, match=r"registry\.db can't be opened: .*not a database"):
        Registry.open(f"sqlite:///{file}")


def test_a_folder_that_can_t_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the folder's place")
    with pytest.raises(ConfigurationError, match="can't be opened"):
        Registry.open(f"sqlite:///{tmp_path / 'data' / 'registry.db'}")


def test_a_file_name_may_hold_any_character(tmp_path: Path) -> None:
    folder = tmp_path / "100% für uns"
    Registry.open(f"sqlite:///{folder / 'registry.db'}").close()
    assert tables(folder / "registry.db") > {"adapters"}
