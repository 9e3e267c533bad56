import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from vllm.v1.engine.core import EngineCoreProc

from engine.vllm.processes import end_engine_with_this_process, run_engine_core
from tests.stack_process import ROOT, wait_for

PARENT = """
import multiprocessing, time
from engine.vllm.processes import _end_with_parent

def child():
    _end_with_parent()
    print("ready", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    started = multiprocessing.get_context("METHOD").Process(target=child)
    started.start()
    print(started.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_process_ends_when_its_parent_is_killed(method: str, tmp_path: Path) -> None:
    file = tmp_path / "parent.py"
    file.write_text(PARENT.replace("METHOD", method))
    parent = subprocess.Popen(
        [sys.executable, str(file)],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        (pid,) = lines - {"ready"}
        child = psutil.Process(int(pid))
        assert child.is_running()
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not child.is_running() or child.status() == "zombie", "the child's end")


def test_vllm_starts_its_engine_core_by_the_function_that_stands_in_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EngineCoreProc, "run_engine_core", EngineCoreProc.run_engine_core)
    original = EngineCoreProc.run_engine_core
    try:
        end_engine_with_this_process()
        end_engine_with_this_process()
        assert EngineCoreProc.run_engine_core is run_engine_core
        assert EngineCoreProc._original_main is original
    finally:
        del EngineCoreProc._original_main
