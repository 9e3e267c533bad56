"""VLLM's own OpenAI server for tests: what this project's answers are held against."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from stack.installation import free_ports

from adapter_sync.model_path import resolve_model
from engine.engine_arguments import command_line
from tests.stack_process import BASE_MODEL, READY_DEADLINE_S, ROOT, wait_for

STOP_DEADLINE_S = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServer:
    """A running `vllm serve`."""

    process: subprocess.Popen[bytes]
    url: str


@contextlib.contextmanager
def running_vllm(
    folder: Path, *, model_json: Path, adapters: Mapping[str, Path]
) -> Iterator[VllmServer]:
    """Start vLLM's server with a base model's own arguments and these adapters, by their names."""
    settings = json.loads(model_json.read_text(encoding="utf-8"))
    settings["model"] = resolve_model(settings["model"], ROOT / ".runtime" / "models")
    # What this project sets by itself: engine/engine_arguments.py.
    settings.setdefault("enable_prompt_tokens_details", True)
    settings |= {
        "served_model_name": BASE_MODEL,
        "host": "127.0.0.1",
        "port": free_ports(1)[0],
        "lora_modules": [f"{name}={path}" for name, path in adapters.items()],
    }
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "vllm.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *command_line(settings),
            ],
            env=os.environ
            | {
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
                # vLLM's own choice is the first cores, which this project's engine has.
                "VLLM_CPU_OMP_THREADS_BIND": str((os.cpu_count() or 1) - 1),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = VllmServer(process=process, url=f"http://127.0.0.1:{settings['port']}")
    try:
        wait_for(lambda: _is_ready(server), "vLLM's server", deadline_s=READY_DEADLINE_S)
        yield server
    except BaseException:
        print(log.read_text(errors="replace")[-8000:])
        raise
    finally:
        process.terminate()
        process.wait(STOP_DEADLINE_S)


def _is_ready(server: VllmServer) -> bool:
    if server.process.poll() is not None:
        raise AssertionError(f"vLLM's server ended with {server.process.returncode}")
    try:
        return httpx.get(f"{server.url}/health", timeout=2).is_success
    except httpx.TransportError:
        return False
