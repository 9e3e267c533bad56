"""Servers as child processes of a script."""

import sys
from pathlib import Path

import psutil
import pytest
from stack.child import ChildError, running

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
