"""The faults that can be done, each to an installation that serves."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.lora_map import companion_name
from adapter_sync.settings import Settings
from stack.installation import end, leftovers

STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a fault is done to: an installation, a base model of it, and its top process."""

    settings: Settings
    base_model: str
    serve: psutil.Process

    def process(self, part: str) -> psutil.Process:
        """The process of that name. Raises LookupError when there is none."""
        for each in self.serve.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if part in _parts_of(each, self.base_model):
                    return each
        raise LookupError(f"there is no process {part!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong.

    `replaces` are the processes in whose place others have to come. `is_at_gateway` is whether
    connections may be refused meanwhile. `ends` is whether scripts/serve ends with it, and is
    started again. `fails_adapter` is whether it damages an adapter, whose content is then uploaded
    again.
    """

    name: str
    what: str
    do: Callable[[Target], object]
    is_at_gateway: bool = False
    ends: bool = False
    fails_adapter: bool = False
    replaces: tuple[str, ...] = ()


def _parts_of(process: psutil.Process, base_model: str) -> Iterator[str]:
    words = process.cmdline() or [""]
    line = " ".join(words)
    if "EngineCore" in words[0]:
        yield "engine core"
    elif "VLLM::Worker" in words[0]:
        yield "worker"
    elif words[0].endswith(STUB):
        yield "stub" if f"/{base_model}/1/" in line else ""
        yield "companion" if f"/{companion_name(base_model)}/1/" in line else ""
    elif words[0].endswith("/tritonserver"):
        yield "tritonserver"
    else:
        modules = ("gateway", "adapter_sync", "stack.triton", "supervisor.supervisord")
        yield from (module for module in modules if f"-m {module}" in line)


def _signal(part: str, number: signal.Signals) -> Callable[[Target], object]:
    return lambda target: target.process(part).send_signal(number)


def _kill_all_but_the_engine(target: Target) -> None:
    """As when whoever runs it is killed together with everything that it started by itself."""
    everything = [target.serve, *target.serve.children(recursive=True)]
    engine = {target.process("engine core"), target.process("worker")}
    for process in everything:
        if process not in engine:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _kill_everything(target: Target) -> None:
    end([target.serve, *leftovers(target.settings)], patience_s=0)


def _flip_a_bit(target: Target) -> None:
    """In the largest blob, in place: an adapter's weights."""
    folder = target.settings.blobs_folder
    blobs = FolderBlobStore(folder)
    digest = max(blobs.digests(), key=blobs.size_bytes)
    file = blobs.path(digest)
    file.chmod(0o600)
    with file.open("r+b") as opened:
        opened.seek(-1, 2)
        last = opened.read(1)
        opened.seek(-1, 2)
        opened.write(bytes([last[0] ^ 1]))


PARTS = {
    "engine core": "the engine core",
    "worker": "the worker",
    "stub": "the base model's process",
    "companion": "the companion's process",
    "tritonserver": "tritonserver",
    "stack.triton": "what runs tritonserver",
    "adapter_sync": "adapter_sync",
    "gateway": "the gateway",
}
FAULTS = (
    *(
        Fault(
            name=f"kill-{part.replace(' ', '-')}",
            what=f"SIGKILL to {words}",
            do=_signal(part, signal.SIGKILL),
            is_at_gateway=part == "gateway",
            replaces=(part,),
        )
        for part, words in PARTS.items()
    ),
    *(
        Fault(
            name=f"stop-{part.replace(' ', '-')}",
            what=f"SIGSTOP to {words}",
            do=_signal(part, signal.SIGSTOP),
            is_at_gateway=part == "gateway",
            replaces=(part,),
        )
        for part, words in PARTS.items()
    ),
    Fault(
        name="kill-supervisord",
        what="SIGKILL to supervisord",
        do=_signal("supervisor.supervisord", signal.SIGKILL),
        is_at_gateway=True,
        ends=True,
    ),
    Fault(
        name="kill-all-but-engine",
        what="SIGKILL to all but engine core and worker, then a start",
        do=_kill_all_but_the_engine,
        is_at_gateway=True,
        ends=True,
    ),
    Fault(
        name="kill-everything",
        what="SIGKILL to everything, then a start",
        do=_kill_everything,
        is_at_gateway=True,
        ends=True,
    ),
    Fault(
        name="flip-bit",
        what="a bit of an adapter's blob flipped in place",
        do=_flip_a_bit,
        fails_adapter=True,
    ),
)
"""By the order in which they are done."""
QUICK = ("kill-engine-core", "stop-adapter_sync", "kill-gateway", "flip-bit")
