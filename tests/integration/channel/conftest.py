"""A real Triton, whose base model has an engine that costs nothing, and the gateway's client."""

import contextlib
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import pytest_asyncio
from stack.installation import free_ports
from stack.triton import command, environment

from adapter_sync.companion_folder import TEMPLATES
from adapter_sync.settings import Settings
from gateway.triton import TritonClient
from tests.stack_process import wait_for

BASE_MODEL = "endless"
MODEL = Path(__file__).with_name("endless_model.py")


@dataclass(slots=True, kw_only=True)
class Triton:
    """A tritonserver of the tests' own; one that `is_broken` can't end as it should."""

    process: psutil.Process
    settings: Settings
    is_broken: bool = False

    @property
    def grpc_address(self) -> str:
        return f"{self.settings.triton_host}:{self.settings.triton_grpc_port}"

    def control(self, action: str) -> httpx.Response:
        """Load or unload the base model."""
        path = f"/v2/repository/models/{BASE_MODEL}/{action}"
        return httpx.post(self._url(path), json={}, timeout=30)

    def is_loaded(self) -> bool:
        return httpx.get(self._url(f"/v2/models/{BASE_MODEL}/ready"), timeout=10).is_success

    def has_unloaded(self) -> bool:
        """Whether the last instance of the base model has ended, and its process."""
        return not self.stubs()

    def stubs(self) -> list[psutil.Process]:
        found = []
        for each in self.process.children(recursive=True):
            # One may end meanwhile.
            with contextlib.suppress(psutil.NoSuchProcess):
                if "python_backend_stub" in " ".join(each.cmdline()):
                    found.append(each)
        return found

    def in_flight(self) -> int:
        """How many requests the engine has."""
        return int((self.settings.lora_data_dir / "in_flight").read_text())

    def touch(self) -> None:
        """Change the base model, so that a load is a reload."""
        file = self.settings.model_repository / BASE_MODEL / "1" / "model.py"
        file.write_text(file.read_text() + "\n")

    def _url(self, path: str) -> str:
        return f"http://{self.settings.triton_host}:{self.settings.triton_http_port}{path}"


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[Triton]:
    ports = free_ports(3)
    settings = Settings(
        _env_file=None,  # type: ignore[call-arg]  # pydantic-settings' own argument
        lora_data_dir=tmp_path,
        model_repository=tmp_path / "repository",
        triton_http_port=ports[0],
        triton_grpc_port=ports[1],
        triton_metrics_port=ports[2],
    )
    folder = settings.model_repository / BASE_MODEL
    shutil.copytree(TEMPLATES / "base", folder)
    shutil.copy(MODEL, folder / "1" / "model.py")
    with (tmp_path / "triton.log").open("wb") as log:
        process = subprocess.Popen(
            command(settings, "explicit"),
            env=environment(settings),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    running = Triton(process=psutil.Process(process.pid), settings=settings)
    try:
        wait_for(lambda: _is_serving(running), "Triton")
        yield running
        if not running.is_broken:
            # A request that stays would hold it for its whole exit time-out.
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
    except BaseException:
        print((tmp_path / "triton.log").read_text(errors="replace")[-5000:])
        raise
    finally:
        left = running.process.children(recursive=True) if process.poll() is None else []
        process.kill()
        for each in left:
            each.kill()
        process.wait()


def _is_serving(triton: Triton) -> bool:
    try:
        return triton.is_loaded()
    except httpx.TransportError:
        return False


@pytest_asyncio.fixture
async def client(triton: Triton) -> AsyncIterator[TritonClient]:
    made = TritonClient(triton.grpc_address)
    yield made
    await made.close()
