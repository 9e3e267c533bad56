"""One installation on this machine: its names, its lock and its processes."""

import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from adapter_sync.settings import Settings
from adapter_sync.staging import try_lock

ROOT = Path(__file__).resolve().parent.parent.parent
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - POSIX shared memory lives there
PR_SET_PDEATHSIG = 1
INSTANCE_VARIABLE, PART_VARIABLE = "LORA_INSTANCE", "LORA_INSTANCE_PART"
"""Every process of an installation carries its name in the first of these variables of its
environment; those that tritonserver started carry TRITON_PART in the second."""
TRITON_PART = "triton"


def instance_id(settings: Settings) -> str:
    """Twelve hex digits, the same for the same data folder."""
    return hashlib.sha256(os.fsencode(settings.lora_data_dir.resolve())).hexdigest()[:12]


def shared_memory_prefix(settings: Settings) -> str:
    """How the names of this installation's shared-memory regions begin."""
    return f"lora_{instance_id(settings)}_"


def lock(settings: Settings) -> IO[str] | None:
    """Hold the data folder for this process, or None when another one has it."""
    return try_lock(settings.serve_lock)


def taken_ports(settings: Settings) -> list[str]:
    """A sentence for each port that can't be had."""
    ports = {
        "GATEWAY_PORT": (settings.gateway_host, settings.gateway_port),
        "TRITON_HTTP_PORT": (settings.triton_host, settings.triton_http_port),
        "TRITON_GRPC_PORT": (settings.triton_host, settings.triton_grpc_port),
        "TRITON_METRICS_PORT": (settings.triton_host, settings.triton_metrics_port),
    }
    taken = []
    for variable, (host, port) in ports.items():
        if (reason := _refusal(host, port)) is not None:
            taken.append(f"port {port} on {host} can't be had ({reason}): set {variable}")
    if len({port for _, port in ports.values()}) < len(ports):
        taken.append(f"{', '.join(sorted(ports))} must be four different ports")
    return taken


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody has at the moment."""
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def settings_below(folder: Path) -> Settings:
    """An installation of its own: below the folder, and on free ports."""
    ports = free_ports(4)
    return Settings(
        lora_data_dir=folder / "data",
        model_repository=folder / "model_repository",
        gateway_port=ports[0],
        triton_http_port=ports[1],
        triton_grpc_port=ports[2],
        triton_metrics_port=ports[3],
    )


@contextlib.contextmanager
def work_folder(prefix: str) -> Iterator[Path]:
    """A new folder below data/, removed at the end.

    Not the system's temporary folder, which may be in memory.
    """
    data = ROOT / "data"
    data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=data) as name:
        yield Path(name)


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that tell a process where the installation is."""
    return {
        "LORA_DATA_DIR": str(settings.lora_data_dir),
        "MODEL_REPOSITORY": str(settings.model_repository),
        "GATEWAY_PORT": str(settings.gateway_port),
        "TRITON_HTTP_PORT": str(settings.triton_http_port),
        "TRITON_GRPC_PORT": str(settings.triton_grpc_port),
        "TRITON_METRICS_PORT": str(settings.triton_metrics_port),
    }


def leftovers(settings: Settings, *, part: str | None = None) -> list[psutil.Process]:
    """The processes of this installation, or of a part of it, that are not this process."""
    marks = {f"{INSTANCE_VARIABLE}={instance_id(settings)}".encode()}
    if part is not None:
        marks.add(f"{PART_VARIABLE}={part}".encode())
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            mine = process.pid != os.getpid() and marks <= environment_of_process(process.pid)
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def environment_of_process(pid: int) -> set[bytes]:
    """The NAME=VALUE pairs that a process was started with. Raises OSError.

    Not by psutil, which stops at the first of the NULs that a process title leaves at the front:
    vLLM's processes set theirs, and keep what comes after (engine/vllm/processes.py).
    """
    return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies, even of SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end(processes: list[psutil.Process], *, patience_s: float = 5) -> None:
    """End processes: politely, and after `patience_s` by force.

    The shared memory that they had mapped goes with them: a killed one can't clear it itself.
    """
    regions = {region for process in processes for region in shared_memory_of(process)}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, stubborn = psutil.wait_procs(processes, timeout=patience_s)
    for process in stubborn:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(stubborn, timeout=patience_s)
    for region in regions:
        region.unlink(missing_ok=True)


def shared_memory_of(process: psutil.Process) -> set[Path]:
    """The POSIX shared-memory regions and semaphores that a process has mapped."""
    with contextlib.suppress(psutil.Error, OSError):
        paths = {Path(mapped.path) for mapped in process.memory_maps()}
        return {path for path in paths if path.parent == SHARED_MEMORY}
    return set()


def _refusal(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            return error.strerror or str(error)
    return None
