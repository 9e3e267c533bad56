"""A real installation for tests: scripts/serve on free ports, in folders of its own."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import httpx
import openai
import psutil
from stack.child import answers
from stack.installation import environment_of, environment_of_process, settings_below

from adapter_sync.engine_status import EngineStatus
from adapter_sync.lora_map import adapter_files_folder, companion_name
from adapter_sync.registry import Registry
from adapter_sync.settings import TRITON_KEY_HEADER
from adapter_sync.triton_control import ExplicitControl

Found = TypeVar("Found")

ROOT = Path(__file__).resolve().parent.parent
BASE_MODEL = "smollm2-135m-instruct"
READY_DEADLINE_S = 600
STOP_DEADLINE_S = 180
EXAMPLES = ("finance", "legal", "healthcare")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A running installation."""

    process: subprocess.Popen[bytes]
    environment: dict[str, str]
    data: Path
    repository: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['GATEWAY_PORT']}"

    @property
    def triton_url(self) -> str:
        return f"127.0.0.1:{self.environment['TRITON_HTTP_PORT']}"

    @property
    def companion(self) -> Path:
        return self.repository / companion_name(BASE_MODEL) / "1"

    def registry(self) -> Registry:
        return Registry.open(f"sqlite:///{self.data / 'registry.db'}")

    def new_key(self, tenant: str, tier: str = "shared") -> str:
        registry = self.registry()
        try:
            registry.create_tenant(tenant, tier)
            return registry.create_key(tenant)
        finally:
            registry.close()

    def api(self, key: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def openai(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def engine(self) -> EngineStatus | None:
        key = self.environment.get("LORA_TRITON_KEY")
        headers = {} if key is None else {TRITON_KEY_HEADER: key}
        control = ExplicitControl(self.triton_url, headers=headers)
        return control.status(companion_name(BASE_MODEL))

    def engine_pids(self) -> tuple[int, ...]:
        status = wait_for(self.engine, "the companion")
        return status.pids

    def processes(self, words: str) -> list[psutil.Process]:
        """This installation's processes whose command line holds the words."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                mine = f"LORA_DATA_DIR={self.data}".encode()
                if mine in environment_of_process(process.pid) and words in " ".join(
                    process.cmdline()
                ):
                    found.append(process)
        return found

    def leftovers(self) -> list[str]:
        """What is in the folders that files only pass through."""
        # Not by rglob, which fails when a folder goes while it looks.
        walk = os.walk(self.data / "staging")
        staged = [str(Path(folder, name)) for folder, _, names in walk for name in names]
        return sorted(path for path in staged if not path.endswith(".lock"))

    def adapter_folders(self) -> list[str]:
        files = adapter_files_folder(self.repository, BASE_MODEL)
        return sorted(path.name for path in files.iterdir() if path.is_dir())


def upload(
    api: httpx.Client,
    name: str,
    adapter: Path,
    *,
    base_model: str = BASE_MODEL,
    wait_s: int | None = None,
    replace: bool = False,
) -> httpx.Response:
    """Upload a PEFT folder as the adapters page's curl line does, with its config."""
    return api.post(
        "/v1/adapters/upload",
        data={"name": name, "base_model": base_model, "replace": str(replace).lower()},
        files={
            "config": ("adapter_config.json", (adapter / "adapter_config.json").read_bytes()),
            "file": ("adapter.safetensors", (adapter / "adapter_model.safetensors").read_bytes()),
        },
        headers={} if wait_s is None else {"Prefer": f"wait={wait_s}"},
    )


def example(name: str) -> Path:
    """One of the committed adapters."""
    return ROOT / "examples" / name / "adapter"


@contextlib.contextmanager
def running_stack(
    folder: Path, *, control: str = "explicit", settings: Mapping[str, str] = MappingProxyType({})
) -> Iterator[Stack]:
    """Start an installation, wait until it is ready, and stop it as Ctrl-C does."""
    environment = {**os.environ, **environment_of(settings_below(folder)), **settings}
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(ROOT / "scripts" / "serve"), f"--control={control}"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    stack = Stack(
        process=process,
        environment=environment,
        data=folder / "data",
        repository=folder / "model_repository",
        log=log,
    )
    try:
        wait_for(lambda: is_ready(stack), "the stack", deadline_s=READY_DEADLINE_S)
        yield stack
    except BaseException:
        print(log.read_text(errors="replace")[-8000:])
        raise
    finally:
        stop(stack)


def is_ready(stack: Stack) -> bool:
    if stack.process.poll() is not None:
        raise AssertionError(f"serve ended with {stack.process.returncode}")
    return answers(f"{stack.url}/health/ready")


def stop(stack: Stack) -> int:
    """Stop as Ctrl-C does; the exit status."""
    if stack.process.poll() is None:
        stack.process.send_signal(signal.SIGINT)
    try:
        return stack.process.wait(STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        stack.process.kill()
        raise


def wait_for(look: Callable[[], Found | None], what: str, *, deadline_s: float = 180) -> Found:
    """What `look` finds, asked until it is something."""
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come within {deadline_s} s")
