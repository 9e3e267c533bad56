"""Run tritonserver in the foreground and leave nothing of it behind.

A tritonserver that is killed leaves its Python stubs and vLLM's processes running, and its
shared-memory regions in /dev/shm. So this process adopts its descendants (Linux's child
subreaper) and ends them, and the regions carry a prefix that belongs to the installation.
"""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil

from adapter_sync.settings import Settings, load_settings
from stack.frozen import Liveness
from stack.installation import (
    PART_VARIABLE,
    ROOT,
    SHARED_MEMORY,
    TRITON_PART,
    end,
    end_with_parent,
    leftovers,
    shared_memory_prefix,
)

PR_SET_CHILD_SUBREAPER = 36
EXIT_TIMEOUT_S = 20
LOOK_PERIOD_S = 1.0
VLLM_SOCKETS = "vllm"
POLL_PERIOD_S = 1
RESTRICTED = (
    "inference",
    "logging",
    "metadata",
    "model-config",
    "model-repository",
    "shared-memory",
    "statistics",
    "trace",
)
"""Triton's APIs that ask for LORA_TRITON_KEY, if there is one."""
BUNDLED = ROOT / ".runtime" / "triton" / "pytriton" / "tritonserver"


def main(argv: Sequence[str] | None = None) -> int:
    """Run tritonserver until SIGTERM or SIGINT; its exit status."""
    parser = argparse.ArgumentParser(prog="stack.triton", description=__doc__)
    parser.add_argument("--control", choices=["explicit", "poll"], default="explicit")
    arguments = parser.parse_args(argv)
    settings = load_settings()
    # Those that a killed one of this process left.
    end(leftovers(settings, part=TRITON_PART))
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = subprocess.Popen(
        command(settings, arguments.control),
        env=environment(settings),
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - this process has one thread
    )

    def forward(signal_number: int, _: FrameType | None) -> None:
        server.send_signal(signal.SIGTERM if signal_number == signal.SIGINT else signal_number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    try:
        return watch(server, settings)
    finally:
        end(psutil.Process().children(recursive=True))
        clear(settings)


def watch(server: "subprocess.Popen[bytes]", settings: Settings) -> int:
    """Wait for tritonserver's end; its exit status.

    Meanwhile processes whose parents were killed, which come to this one, are ended, and a
    tritonserver that has stopped answering is killed.
    """
    orphans: list[psutil.Process] = []
    liveness = Liveness(settings.triton_host, settings.triton_http_port, "/v2/health/live")
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return server.wait(LOOK_PERIOD_S)
        # One that is still there at the next look does not end by itself.
        here = [each for each in psutil.Process().children() if each.pid != server.pid]
        end_all([each for each in here if each in orphans])
        orphans = here
        if liveness.is_lost():
            print("triton: tritonserver does not answer any more: killed", file=sys.stderr)
            server.kill()


def end_all(orphans: Sequence[psutil.Process]) -> None:
    """End them with all that they started."""
    for each in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            end([each, *each.children(recursive=True)])


def command(settings: Settings, control: str) -> list[str]:
    """The launch line."""
    bundled = BUNDLED / "bin" / "tritonserver"
    executable = str(bundled) if bundled.exists() else shutil.which("tritonserver")
    if executable is None:
        raise SystemExit("There is no tritonserver: run scripts/setup, or use NVIDIA's image.")
    words = [
        executable,
        f"--model-repository={settings.model_repository}",
        f"--http-address={settings.triton_host}",
        f"--grpc-address={settings.triton_host}",
        f"--metrics-address={settings.triton_host}",
        f"--http-port={settings.triton_http_port}",
        f"--grpc-port={settings.triton_grpc_port}",
        f"--metrics-port={settings.triton_metrics_port}",
        "--disable-auto-complete-config",
        "--exit-on-error=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(settings)}",
        f"--model-control-mode={control}",
    ]
    if settings.triton_headers:
        # All but health, which probes ask for. It shows in the list of processes.
        ((header, key),) = settings.triton_headers.items()
        words += [
            f"--{option}={','.join(RESTRICTED)}:{header}={key}"
            for option in ("http-restricted-api", "grpc-restricted-protocol")
        ]
    if control == "poll":
        words.append(f"--repository-poll-secs={POLL_PERIOD_S}")
    else:
        words.append("--load-model=*")
    if bundled.exists():
        words.append(f"--backend-directory={BUNDLED / 'backends'}")
    return words


def environment(settings: Settings) -> dict[str, str]:
    """Where the stub finds the interpreter's library, its packages and the base models."""
    libraries = [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    # vLLM would ask every request for its key; here the gateway asks for the tenants' keys. The
    # admin's is the gateway's alone.
    kept_out = ("VLLM_API_KEY", "LORA_ADMIN_KEY", "LORA_TRITON_KEY")
    inherited = {name: value for name, value in os.environ.items() if name not in kept_out}
    sockets = settings.socket_folder / VLLM_SOCKETS
    sockets.mkdir(parents=True, exist_ok=True)
    return inherited | {
        PART_VARIABLE: TRITON_PART,
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "LC_ALL": "C.UTF-8",
        "LORA_MODELS_DIR": str(settings.lora_models_dir),
        "LORA_SOCKET_DIR": str(settings.socket_folder),
        "VLLM_RPC_BASE_PATH": str(sockets),
        "VLLM_NO_USAGE_STATS": os.environ.get("VLLM_NO_USAGE_STATS", "1"),
    }


def clear(settings: Settings) -> None:
    """Remove the shared memory and the sockets that a killed Triton of this installation left."""
    for region in SHARED_MEMORY.glob(f"{shared_memory_prefix(settings)}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(settings.socket_folder / VLLM_SOCKETS, ignore_errors=True)
    for left in settings.socket_folder.glob("*.sock"):
        left.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
