"""Servers as child processes of a script."""

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from stack.child import ChildError, all_at_once, running

SERVER = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True)"
FOREVER = f"{SERVER}; time.sleep(60)"


def test_a_server_and_what_it_started_end_with_the_block(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(
        [sys.executable, "-c", FOREVER],
        log=log,
        is_ready=lambda: log.exists() and "up" in log.read_text(),
    ) as process:
        family = [process, *process.children(recursive=True)]
        assert len(family) == 2
    _, alive = psutil.wait_procs(family, timeout=5)
    assert alive == []


def test_a_server_that_ends_at_its_start_is_told_of_with_its_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ChildError, match=r"ended with 3; .*\nno such option"),
        running(
            [sys.executable, "-c", "print('no such option'); raise SystemExit(3)"],
            log=tmp_path / "log",
            is_ready=lambda: False,
        ),
    ):
        pass


def test_a_server_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    with (
        pytest.raises(ChildError, match=r"was not ready within 0\.5 s"),
        running(
            [sys.executable, "-c", FOREVER],
            log=tmp_path / "log",
            is_ready=lambda: False,
            ready_within_s=0.5,
        ),
    ):
        pass
    assert [p for p in psutil.Process().children(recursive=True) if p.name() == "sleep"] == []


def test_servers_start_side_by_side_and_end_with_the_block() -> None:
    meeting = threading.Barrier(2, timeout=10)
    inside: set[str] = set()

    @contextlib.contextmanager
    def server(name: str) -> Iterator[str]:
        # One after the other they would never meet.
        meeting.wait()
        inside.add(name)
        yield name.upper()
        inside.remove(name)

    with all_at_once({"a": server("a"), "b": server("b")}) as started:
        assert started == {"a": "A", "b": "B"}
        assert inside == {"a", "b"}
    assert inside == set()


def test_when_one_of_several_does_not_start_the_others_end() -> None:
    ended: list[str] = []

    @contextlib.contextmanager
    def server(name: str) -> Iterator[None]:
        if name == "broken":
            raise RuntimeError("no memory")
        try:
            yield
        finally:
            ended.append(name)

    servers = {name: server(name) for name in ("first", "broken", "last")}
    with pytest.raises(RuntimeError, match="no memory"), all_at_once(servers):
        raise AssertionError("the block must not run")
    assert sorted(ended) == ["first", "last"]
