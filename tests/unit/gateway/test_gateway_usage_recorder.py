"""Usage on its way into a real registry, which may fail, be slow, or not be heard of."""

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy.exc import SQLAlchemyError
from structlog.testing import capture_logs

from adapter_sync.record import Usage, UsageField
from adapter_sync.registry import Registry
from gateway.engine_client import TokenUsage
from gateway.usage_recorder import Meter, UsageRecorder


@pytest.fixture
def registry_file(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(registry_file: Path) -> Iterator[Registry]:
    with closing(Registry.open(f"sqlite:///{registry_file}")) as opened:
        yield opened


def meter(recorder: UsageRecorder, spent: list[int] | None = None) -> Meter:
    return recorder.meter(
        tenant_id="ten_1",
        key_id="k1",
        requested_model="tiny:finance",
        adapter_id="adp_1",
        spend=(spent if spent is not None else []).append,
    )


def use(recorder: UsageRecorder, prompt_tokens: int = 10, completion_tokens: int = 5) -> None:
    metered = meter(recorder)
    metered.count_request()
    metered.count_tokens(
        TokenUsage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
    )


def total(registry: Registry) -> tuple[int, int, int]:
    fields = [UsageField.KEY]
    buckets = registry.usage("ten_1", first=date.min, last=date.max, group_by=fields)
    used = buckets[0].usage if buckets else Usage(requests=0, prompt_tokens=0, completion_tokens=0)
    return used.requests, used.prompt_tokens, used.completion_tokens


@contextmanager
def broken(registry_file: Path) -> Iterator[None]:
    """A database that refuses usage, after its batch has been noted in the transaction."""
    with closing(sqlite3.connect(registry_file, isolation_level=None)) as connection:
        connection.execute(
            "CREATE TRIGGER fault BEFORE INSERT ON usage BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
        yield
        connection.execute("DROP TRIGGER fault")


async def test_a_requests_totals_are_added_as_they_grow(registry: Registry) -> None:
    recorder, spent = UsageRecorder(registry), list[int]()
    metered = meter(recorder, spent)
    for prompt_tokens, completion_tokens in ((7, 0), (7, 1), (7, 1), (7, 4)):
        metered.count_tokens(
            TokenUsage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        )
        await recorder.flush()
    metered.count_request()
    metered.count_request()
    await recorder.flush()
    assert total(registry) == (1, 7, 4)
    assert spent == [7, 1, 0, 3]


async def test_a_failed_flush_loses_nothing_and_adds_nothing_twice(
    registry: Registry, registry_file: Path
) -> None:
    recorder = UsageRecorder(registry)
    use(recorder)
    with broken(registry_file):
        for _ in range(3):
            with pytest.raises(SQLAlchemyError, match="full"):
                await recorder.flush()
            use(recorder)
        assert total(registry) == (0, 0, 0)
    await recorder.flush()
    assert total(registry) == (4, 40, 20)
    await recorder.flush()
    assert total(registry) == (4, 40, 20)


async def test_a_flush_that_is_cancelled_and_still_commits_counts_once(
    registry: Registry, registry_file: Path
) -> None:
    recorder = UsageRecorder(registry)
    use(recorder)
    with closing(sqlite3.connect(registry_file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        flushing = asyncio.create_task(recorder.flush())
        await asyncio.sleep(0.1)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        other.execute("COMMIT")
    use(recorder)
    await recorder.flush()
    assert total(registry) == (2, 20, 10)


async def test_flushes_at_the_same_time_write_each_batch_once(registry: Registry) -> None:
    recorder = UsageRecorder(registry)
    for _ in range(20):
        use(recorder)
        await asyncio.gather(*(recorder.flush() for _ in range(3)))
    assert total(registry) == (20, 200, 100)


async def test_it_is_written_every_so_often_and_at_the_end(registry: Registry) -> None:
    recorder = UsageRecorder(registry)
    async with recorder.flushing(period_s=0.02):
        use(recorder)
        async with asyncio.timeout(60):
            while total(registry) != (1, 10, 5):  # noqa: ASYNC110  # another task's work
                await asyncio.sleep(0.01)
    async with recorder.flushing(period_s=60):
        use(recorder)
    assert total(registry) == (2, 20, 10)


async def test_flushing_outlives_a_broken_database_and_says_so_once(
    registry: Registry, registry_file: Path
) -> None:
    recorder = UsageRecorder(registry)
    with capture_logs() as logs:
        async with recorder.flushing(period_s=0.01):
            with broken(registry_file):
                use(recorder)
                await asyncio.sleep(0.2)
        assert [line["event"] for line in logs] == ["usage.not_flushed"]
    assert total(registry) == (1, 10, 5)


async def test_what_can_not_be_written_at_the_end_is_in_the_log(
    registry: Registry, registry_file: Path
) -> None:
    recorder = UsageRecorder(registry)
    with capture_logs() as logs, broken(registry_file):
        async with recorder.flushing(period_s=60):
            use(recorder)
    lost = [line for line in logs if line["event"] == "usage.lost"]
    assert [(line["tenant_id"], line["requests"], line["prompt_tokens"]) for line in lost] == [
        ("ten_1", 1, 10)
    ]
