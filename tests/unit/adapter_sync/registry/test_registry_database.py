"""What is asked many times a second, and who notices whose commits."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection

from adapter_sync.registry import Registry
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
