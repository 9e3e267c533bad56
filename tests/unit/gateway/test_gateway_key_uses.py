"""Last uses that can't be written: the next ones still are, and nobody else notices."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from adapter_sync.record import ApiKey
from adapter_sync.registry import Registry
from gateway.key_uses import KeyUses

PATIENCE_S = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(file: Path) -> Iterator[Registry]:
    with closing(Registry.open(f"sqlite:///{file}")) as opened:
        opened.create_tenant("acme", "shared")
        yield opened


def _rename(file: Path, old: str, new: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")


def _key(registry: Registry, key_id: str) -> ApiKey:
    return next(key for key in registry.keys("acme").items if key.id == key_id)


async def _until_written(registry: Registry, key_id: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while _key(registry, key_id).last_used_at is None:  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.02)


async def test_keys_used_together_are_all_written(registry: Registry) -> None:
    keys = [registry.issue_key("acme").key for _ in range(3)]
    uses = KeyUses(registry)
    async with uses.written():
        for key in keys:
            uses.note(key)
        for key in keys:
            await _until_written(registry, key.id)


async def test_a_use_that_could_not_be_written_stops_nothing(
    registry: Registry, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, later = registry.issue_key("acme").key, registry.issue_key("acme").key
    uses = KeyUses(registry)
    async with uses.written():
        _rename(file, "api_keys", "elsewhere")
        uses.note(lost)
        said = ""
        async with asyncio.timeout(PATIENCE_S):
            while "key_uses.not_written" not in said:
                await asyncio.sleep(0.02)
                said += capsys.readouterr().out
        _rename(file, "elsewhere", "api_keys")
        uses.note(later)
        await _until_written(registry, later.id)
    assert _key(registry, lost.id).last_used_at is None


async def test_a_fresh_use_is_not_written_again(registry: Registry) -> None:
    key = registry.issue_key("acme").key
    uses = KeyUses(registry)
    async with uses.written():
        uses.note(key)
        await _until_written(registry, key.id)
        written = _key(registry, key.id)
        uses.note(written)
        await asyncio.sleep(1.2)
    assert _key(registry, key.id) == written
