"""What is asked many times a second, and who notices whose commits."""

import errno
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine, text

from adapter_sync.registry import Registry, Watch, sqlite
from adapter_sync.registry.database import Database, Remembered, select_change_counter

CHANGES = 200


class Counted:
    """Reads the change counter, and counts how often."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self, connection: Connection) -> int:
        self.reads += 1
        return select_change_counter(connection)


@pytest.fixture
def other(registry_url: str) -> Iterator[Database]:
    """The same database with other connections."""
    with closing(Database.open(registry_url)) as opened:
        yield opened


def test_each_commit_is_noticed_whoever_made_it(registry_url: str, other: Database) -> None:
    with closing(Database.open(registry_url)) as database:
        counter = Remembered(database, select_change_counter)
        before = counter.value()
        for number, writer in enumerate((other, database) * 5, start=1):
            with writer.changing():
                pass
            assert counter.value() == before + number


def test_without_a_commit_the_file_is_not_read_again(
    registry_file: Path, registry_url: str, other: Database
) -> None:
    assert registry_file.name
    read = Counted()
    counter = Remembered(other, read)
    values = {counter.value() for _ in range(10)}
    assert (len(values), read.reads) == (1, 1)
    with closing(Registry.open(registry_url)) as registry:
        registry.create_tenant("acme", "shared")
    counter.value()
    assert read.reads == 2


def test_a_change_during_a_look_is_seen_by_the_next_one(registry_url: str, other: Database) -> None:
    with closing(Database.open(registry_url)) as database:
        before = Remembered(database, select_change_counter).value()
        counter = Remembered(database, select_change_counter)

        def change() -> None:
            for _ in range(CHANGES):
                with other.changing():
                    pass

        writer = threading.Thread(target=change)
        writer.start()
        while writer.is_alive():
            counter.value()
        writer.join()
        assert counter.value() == before + CHANGES


LONG_S, SHORT_S = 120, 0.2


@pytest.fixture
def watch(registry: Registry) -> Iterator[Watch]:
    """One that has begun to listen."""
    with closing(registry.watch()) as opened:
        opened.wait(0)
        yield opened


def waited_s(watch: Watch, timeout_s: float) -> float:
    began = time.monotonic()
    watch.wait(timeout_s)
    return time.monotonic() - began


def test_who_waits_is_woken_by_a_write_of_another_process(other: Database, watch: Watch) -> None:
    writer = threading.Timer(SHORT_S, write, [other])
    writer.start()
    assert waited_s(watch, LONG_S) < LONG_S / 2
    writer.join()


def test_a_write_between_two_waits_wakes_the_next_one(other: Database, watch: Watch) -> None:
    write(other)
    assert waited_s(watch, LONG_S) < LONG_S / 2


def test_without_a_write_a_wait_takes_its_time(other: Database, watch: Watch) -> None:
    with other.reading() as connection:
        select_change_counter(connection)
    with suppress(ValueError), other.writing():
        raise ValueError
    assert waited_s(watch, SHORT_S) >= SHORT_S


def test_a_listener_that_the_server_has_cut_off_listens_anew(postgresql_url: str) -> None:
    server = create_engine(postgresql_url, isolation_level="AUTOCOMMIT")
    with (
        closing(Database.open(postgresql_url)) as database,
        closing(database.watch()) as watch,
        server.connect() as connection,
    ):
        watch.wait(0)
        cut_off = connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE query LIKE 'LISTEN%' AND datname = current_database()"
            )
        )
        assert cut_off.scalars().all() == [True]
        assert waited_s(watch, SHORT_S) >= SHORT_S
        watch.wait(0)
        write(database)
        assert waited_s(watch, LONG_S) < LONG_S / 2
    server.dispose()


def test_where_inotify_has_no_room_a_wait_takes_its_time(
    registry_file: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry_file.exists()

    def refuse() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(sqlite, "INotify", refuse)
    with closing(registry.watch()) as watch:
        registry.create_tenant("acme", "shared")
        assert waited_s(watch, SHORT_S) >= SHORT_S


def write(database: Database) -> None:
    with database.writing():
        pass
