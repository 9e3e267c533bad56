"""Real processes that die, stop or hang, and what is done about them. No engine, no Triton."""

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from stack.frozen import LOST_S, QUESTION_PERIOD_S, STOPPED_LOOKS, Liveness, StoppedProcesses
from stack.installation import (
    INSTANCE_VARIABLE,
    PART_VARIABLE,
    TRITON_PART,
    free_ports,
    instance_id,
    leftovers,
)
from stack.programs import Programs
from stack.serve import supervisor_socket
from stack.triton import clear

from adapter_sync.settings import Settings
from tests.stack_process import ROOT, wait_for

TITLED = """
import time, setproctitle
from engine.vllm.processes import keep_name
keep_name()
setproctitle.setproctitle("VLLM::EngineCore")
print("ready", flush=True)
time.sleep(600)
"""
SLEEPER = "import time; print('ready', flush=True); time.sleep(600)"
# As tritonserver does: starts a stub, which starts an engine; the stub is killed.
SERVER = """
import subprocess, sys, time
stub = subprocess.Popen([sys.executable, "-c", '''
import subprocess, sys, time
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(engine.pid, flush=True)
time.sleep(600)
'''])
print(stub.pid, flush=True)
time.sleep(600)
"""
ADOPTER = """
import ctypes, subprocess, sys
from adapter_sync.settings import Settings
from stack.triton import PR_SET_CHILD_SUBREAPER, watch
ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
server = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(server.pid, flush=True)
sys.exit(watch(server, Settings(_env_file=None)))
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        _env_file=None,  # type: ignore[call-arg]  # pydantic-settings' own argument
        lora_data_dir=tmp_path / "data",
    )


@pytest.fixture
def started() -> Iterator[list[psutil.Popen]]:
    """What a test has started; killed at its end."""
    processes: list[psutil.Popen] = []
    yield processes
    for process in processes:
        for each in [*process.children(recursive=True), process] if process.is_running() else []:
            each.kill()
        process.wait()


def start(started: list[psutil.Popen], code: str, *words: str, **variables: str) -> psutil.Popen:
    """A Python process whose lines `line` reads."""
    process = psutil.Popen(
        # Triton starts its stubs through bash, which puts the environment into an order of its own.
        ["bash", "-c", 'exec "$0" "$@"', sys.executable, "-c", code, *words],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", **variables},
        stdout=subprocess.PIPE,
        text=True,
    )
    started.append(process)
    return process


def line(process: psutil.Popen) -> str:
    """The next line that it writes; so far it has come."""
    written: str = process.stdout.readline()
    return written.strip()


def test_what_is_left_is_found_also_where_its_title_covers_its_environment(
    settings: Settings, started: list[psutil.Popen]
) -> None:
    mine = {INSTANCE_VARIABLE: instance_id(settings)}
    engine = start(started, TITLED, **mine, **{PART_VARIABLE: TRITON_PART})
    gateway = start(started, SLEEPER, **mine)
    start(started, TITLED, **{INSTANCE_VARIABLE: "another", PART_VARIABLE: TRITON_PART})
    start(started, SLEEPER)
    assert [line(each) for each in started] == ["ready"] * 4
    assert {each.pid for each in leftovers(settings)} == {engine.pid, gateway.pid}
    assert [each.pid for each in leftovers(settings, part=TRITON_PART)] == [engine.pid]


def test_a_process_that_stays_stopped_is_killed_and_one_that_goes_on_is_not(
    started: list[psutil.Popen],
) -> None:
    stopped, briefly, running = (start(started, SLEEPER) for _ in range(3))
    watch = StoppedProcesses()
    stopped.suspend()
    briefly.suspend()
    wait_for(lambda: briefly.status() == stopped.status() == "stopped", "the stop")
    for _ in range(STOPPED_LOOKS - 1):
        assert watch.look([stopped, briefly, running]) == []
    briefly.resume()
    wait_for(lambda: briefly.status() != "stopped", "its going on")
    assert watch.look([stopped, briefly, running]) == [stopped]
    assert stopped.wait(30) == -signal.SIGKILL
    assert watch.look([stopped, briefly, running]) == []
    assert briefly.is_running()
    assert running.is_running()


def test_a_server_is_lost_when_it_answered_once_and_then_never_for_a_while(
    started: list[psutil.Popen], tmp_path: Path
) -> None:
    now = [0.0]
    (port,) = free_ports(1)
    liveness = Liveness("127.0.0.1", port, "/", clock=lambda: now[0])

    def lost_after(seconds: float) -> bool:
        end = now[0] + seconds
        lost = False
        while now[0] < end:
            now[0] += QUESTION_PERIOD_S
            lost = liveness.is_lost()
        return lost

    # It has never answered: it may still be starting.
    assert not lost_after(2 * LOST_S)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = psutil.Popen([*command, "--directory", str(tmp_path)], stderr=subprocess.DEVNULL)
    started.append(server)
    wait_for(lambda: answers(port), "the server")
    assert not lost_after(QUESTION_PERIOD_S)
    server.kill()
    server.wait()
    assert not lost_after(LOST_S)
    assert lost_after(QUESTION_PERIOD_S)
    # What takes its place may take its time to start.
    assert not lost_after(2 * LOST_S)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").is_success
    except httpx.TransportError:
        return False


def test_what_a_killed_stub_leaves_is_ended_while_the_server_goes_on(
    started: list[psutil.Popen],
) -> None:
    adopter = start(started, ADOPTER, SERVER)
    server = psutil.Process(int(line(adopter)))
    pids = {int(line(adopter)), int(line(adopter))}
    (stub,) = (each for each in server.children() if each.pid in pids)
    (engine,) = stub.children()
    stub.kill()
    wait_for(lambda: not engine.is_running(), "the engine's end", deadline_s=60)
    assert server.is_running()
    assert adopter.is_running()
    server.kill()
    assert adopter.wait(60) != 0


def test_a_program_that_keeps_ending_is_given_up_is_told_and_can_be_tried_again(
    started: list[psutil.Popen], tmp_path: Path
) -> None:
    socket, ready = tmp_path / "s.sock", tmp_path / "ready"
    configuration = tmp_path / "supervisord.conf"
    configuration.write_text(
        textwrap.dedent(f"""
        [supervisord]
        nodaemon=true
        logfile={tmp_path}/log
        pidfile={tmp_path}/pid
        [unix_http_server]
        file={socket}
        [rpcinterface:supervisor]
        supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
        [program:gateway]
        command={sys.executable} -c "import os, time; os.stat('{ready}'); time.sleep(600)"
        startsecs=2
        startretries=1
        """)
    )
    programs = Programs(socket)
    assert programs.given_up() == []
    command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(configuration)]
    started.append(psutil.Popen(command, stdout=subprocess.DEVNULL))
    (given_up,) = wait_for(programs.given_up, "giving up", deadline_s=60)
    assert given_up.name == "gateway"
    assert "Exited too quickly" in given_up.reason
    ready.touch()
    programs.start("gateway")
    (gateway,) = wait_for(started[0].children, "the program")
    assert programs.given_up() == []
    programs.kill("gateway")
    wait_for(lambda: not gateway.is_running(), "its end")
    # One that is stopped is not waited for.
    started[0].suspend()
    assert programs.given_up() == []
    started[0].resume()


def test_supervisords_socket_outlives_triton(settings: Settings) -> None:
    socket = supervisor_socket(settings)
    socket.parent.mkdir(parents=True)
    socket.touch()
    clear(settings)
    assert socket.exists()
