"""What many adapters cost: two installations at once, one with few and one with many of them.

Each has a real Triton, vLLM, adapter_sync and gateway of its own and is filled through the
registry before it starts. The rounds alternate between them, so that both see the same machine;
the ratios are what counts.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx
    from psutil import Process

    from adapter_sync.intake import Intake
    from adapter_sync.record import Adapter, Tenant
    from adapter_sync.registry import Registry

BASE_MODEL = "smollm2-135m-instruct"
ADAPTERS_OF_A_TENANT = 20
START_DEADLINE_S = 900
STOP_DEADLINE_S = 120
CHECK_PERIOD_S = 0.1
LOOKUPS_A_ROUND = 20
# How a part is known by its command line.
PARTS = {
    "gateway": "-m gateway",
    "adapter_sync": "-m adapter_sync",
    "tritonserver": "bin/tritonserver",
    "base_model": f"model_repository/{BASE_MODEL}/1/model.py",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print each figure for few and for many, and their ratio."""
    parser = argparse.ArgumentParser(prog="scripts/bench-many", description=__doc__)
    parser.add_argument("--few", type=int, default=10, help="default: 10")
    parser.add_argument("--many", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--rounds", type=int, default=10, help="default: 10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    arguments = parser.parse_args(argv)
    import structlog

    from stack.installation import work_folder

    # What the registry's filling logs is no figure.
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    with work_folder("bench-many-") as folder:
        installations = [
            Installation(folder / str(count), count) for count in (arguments.few, arguments.many)
        ]
        for each in installations:
            say(f"filling a registry with {each.count} adapters")
            each.fill()
        few, many = measure(installations, arguments.rounds)
    print(f"{'adapters':>24} {arguments.few:10} {arguments.many:10}   ratio")
    for figure, value in few.items():
        print(f"{figure:>24} {value:10.4f} {many[figure]:10.4f} {many[figure] / value:7.2f}")
    if arguments.json is not None:
        document = {str(arguments.few): few, str(arguments.many): many}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Installation:
    """One installation, in a folder and on ports of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        from stack.installation import settings_below

        self.count = count
        self.settings = settings_below(folder)
        self.key = ""
        self.adapter_id = ""
        self.requested_model = ""

    def fill(self) -> None:
        """Put tenants with twenty adapters each into the registry: copies of an example.

        The key, id and name of the one in the middle are kept, to ask for it.
        """
        from adapter_sync.blobs import FolderBlobStore
        from adapter_sync.intake import Intake
        from adapter_sync.registry import Registry

        registry = Registry.open(self.settings.registry_url)
        blobs = FolderBlobStore(self.settings.blobs_folder)
        intake = Intake(registry, blobs, self.settings.staging_folder)
        try:
            self._add_base_model(registry)
            adapters = list(self._add_adapters(registry, intake))
            middle = adapters[self.count // 2]
            self.adapter_id, self.requested_model = middle.id, middle.requested_model
            self.key = registry.create_key(registry.tenant_with_id(middle.tenant_id).name)
        finally:
            registry.close()

    def _add_base_model(self, registry: "Registry") -> None:
        from adapter_sync.base_models import read_base_model
        from stack.serve import seed_repository

        seed_repository(self.settings)
        base = self.settings.model_repository / BASE_MODEL
        registry.put_base_model(read_base_model(base, models_dir=self.settings.lora_models_dir))

    def _add_adapters(self, registry: "Registry", intake: "Intake") -> "Iterator[Adapter]":
        example: Adapter | None = None
        for first in range(0, self.count, ADAPTERS_OF_A_TENANT):
            tenant = registry.create_tenant(f"tenant-{first}", "reserved")
            for number in range(first, min(first + ADAPTERS_OF_A_TENANT, self.count)):
                name = f"adapter-{number}"
                if example is None:
                    adapter = example = accept_example(intake, tenant, name)
                else:
                    adapter = registry.create_adapter(
                        tenant=tenant, name=name, base_model=BASE_MODEL, revision=example.revision
                    )
                yield adapter

    @contextlib.contextmanager
    def running(self) -> "Iterator[httpx.Client]":
        """scripts/serve as a process of its own, and a client of its gateway."""
        import httpx

        from stack.installation import environment_of

        settings = self.settings
        with (settings.lora_data_dir / "serve.log").open("a") as log:
            server = subprocess.Popen(
                [sys.executable, "-P", "-m", "stack.serve"],
                env=os.environ | environment_of(settings),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        url = f"http://{settings.gateway_host}:{settings.gateway_port}"
        headers = {"Authorization": f"Bearer {self.key}"}
        try:
            with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=120) as api:
                yield api
        finally:
            server.terminate()
            server.wait(STOP_DEADLINE_S)

    def memory_mib(self) -> dict[str, float]:
        """Each part's resident memory."""
        from stack.installation import leftovers

        processes = leftovers(self.settings)
        return {f"{part}_rss_mib": rss_mib(words, processes) for part, words in PARTS.items()}


def rss_mib(words: str, processes: "Sequence[Process]") -> float:
    """The memory of the one whose command line holds the words."""
    (found,) = (each for each in processes if words in " ".join(each.cmdline()))
    resident: int = found.memory_info().rss
    return resident / 1024**2


def accept_example(intake: "Intake", tenant: "Tenant", name: str) -> "Adapter":
    """A copy of one of the examples as an adapter."""
    import hashlib

    from adapter_sync.sources.files import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles

    folder = example_folder()
    with intake.staging_file() as staged:
        shutil.copyfile(folder / WEIGHTS_FILE, staged)
        files = AdapterFiles(
            weights=staged,
            weights_sha256=hashlib.sha256(staged.read_bytes()).hexdigest(),
            config=(folder / CONFIG_FILE).read_bytes(),
        )
        return intake.accept(tenant=tenant, name=name, base_model=BASE_MODEL, files=files)


def example_folder() -> Path:
    """A PEFT folder."""
    from stack.installation import ROOT

    return ROOT / "examples" / "finance" / "adapter"


def measure(installations: Sequence[Installation], rounds: int) -> list[dict[str, float]]:
    """Each installation's figures: seconds (medians), and MiB."""
    for each in installations:
        say(f"first start with {each.count} adapters: their files are put in place")
        with each.running() as api:
            wait_until_serving(each, api)
    figures: list[dict[str, list[float]]] = [{} for _ in installations]
    with contextlib.ExitStack() as stack:
        clients = []
        for each, timed in zip(installations, figures, strict=True):
            say(f"restart with {each.count} adapters")
            began = time.monotonic()
            clients.append(stack.enter_context(each.running()))
            wait_until_serving(each, clients[-1])
            timed["restart_s"] = [time.monotonic() - began]
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            for each, api, timed in zip(installations, clients, figures, strict=True):
                for figure, values in one_round(each, api, number).items():
                    timed.setdefault(figure, []).extend(values)
        medians = [{name: statistics.median(v) for name, v in each.items()} for each in figures]
        return [
            {**timed, **each.memory_mib()}
            for each, timed in zip(installations, medians, strict=True)
        ]


def wait_until_serving(installation: Installation, api: "httpx.Client") -> None:
    """Return when the adapter answers. Raises TimeoutError."""
    import httpx

    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if ask(installation, api).is_success:
                return
        time.sleep(CHECK_PERIOD_S)
    log = installation.settings.lora_data_dir / "serve.log"
    raise TimeoutError(f"{log} ends with:\n{log.read_text(errors='replace')[-3000:]}")


def ask(installation: Installation, api: "httpx.Client") -> "httpx.Response":
    """One token of the adapter."""
    body = {
        "model": installation.requested_model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
    }
    return api.post("/v1/chat/completions", json=body)


def one_round(
    installation: Installation, api: "httpx.Client", number: int
) -> dict[str, list[float]]:
    """The seconds of each thing that was done."""
    model = f"/v1/models/{installation.requested_model}"
    adapter = f"/v1/adapters/{installation.adapter_id}"

    def timed(act: Callable[[], "httpx.Response"], count: int = LOOKUPS_A_ROUND) -> list[float]:
        return [seconds(act) for _ in range(count)]

    return {
        "one_token_s": timed(lambda: ask(installation, api)),
        "show_model_s": timed(lambda: api.get(model)),
        "show_adapter_s": timed(lambda: api.get(adapter)),
        "list_adapters_s": timed(lambda: api.get("/v1/adapters")),
        "add_adapter_s": [add_and_remove(api, f"added-{number}")],
    }


def seconds(act: Callable[[], "httpx.Response"]) -> float:
    """How long a request takes that succeeds."""
    began = time.monotonic()
    answer = act()
    took_s = time.monotonic() - began
    answer.raise_for_status()
    return took_s


def add_and_remove(api: "httpx.Client", name: str) -> float:
    """Seconds from the begin of an upload to the adapter being ready. Raises RuntimeError."""
    folder = example_folder()
    files = {
        "config": (folder / "adapter_config.json").read_bytes(),
        "file": (folder / "adapter_model.safetensors").read_bytes(),
    }
    began = time.monotonic()
    answer = api.post(
        "/v1/adapters/upload",
        data={"name": name, "base_model": BASE_MODEL},
        files={field: (field, content) for field, content in files.items()},
        headers={"Prefer": "wait=60"},
    )
    took_s = time.monotonic() - began
    if answer.is_error or answer.json()["status"] != "ready":
        raise RuntimeError(f"{name} did not become ready: {answer.text}")
    api.delete(f"/v1/adapters/{answer.json()['id']}").raise_for_status()
    return took_s


if __name__ == "__main__":
    sys.exit(main())
