"""What a server's processes use: CPU time over a while, and resident memory."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from adapter_sync.lora_map import WRITTEN_SUFFIXES
from stack.bench.figures import Cost

STUB = "triton_python_backend_stub"
NAMES: Mapping[str, str] = {
    "-m gateway": "gateway",
    "-m adapter_sync": "adapter_sync",
    "bin/tritonserver": "tritonserver",
    "VLLM::EngineCore": "engine core",
    "VLLM::Worker": "worker",
    "vllm.entrypoints.openai.api_server": "api server",
    "VLLM::APIServer": "api server",
    "bin/litellm": "litellm",
    "stack.bench.load_client": "load client",
    # Its workers, if it has several; vLLM's processes rename themselves.
    "multiprocessing.spawn import": "gateway",
}
"""How a process is known by its command line, which vLLM's write themselves."""


def name_of(command_line: Sequence[str]) -> str:
    """The name that a process's figures go under."""
    words = " ".join(command_line)
    if STUB in words:
        of_adapters = any(f"{suffix}/" in words for suffix in WRITTEN_SUFFIXES)
        return "companion" if of_adapters else "stub"
    return next((name for known, name in NAMES.items() if known in words), "others")


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What each process had used at one moment, by its id."""

    names: Mapping[int, str]
    cpu_s: Mapping[int, float]
    rss_bytes: Mapping[int, int]


def used_by(roots: Iterable[psutil.Process]) -> Used:
    """The processes and all that they have started."""
    names, cpu_s, rss_bytes = {}, {}, {}
    for root in roots:
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                names[process.pid] = name_of(process.cmdline())
                rss_bytes[process.pid] = process.memory_info().rss
                cpu_s[process.pid] = times.user + times.system
    return Used(names=names, cpu_s=cpu_s, rss_bytes=rss_bytes)


def cost_between(before: Used, after: Used) -> Cost:
    """What was used meanwhile, the memory being that at the end; the same names are added up."""
    cpu_s: dict[str, float] = defaultdict(float)
    rss_bytes: dict[str, int] = defaultdict(int)
    for pid, total_s in after.cpu_s.items():
        cpu_s[after.names[pid]] += total_s - before.cpu_s.get(pid, 0)
        rss_bytes[after.names[pid]] += after.rss_bytes[pid]
    return Cost(cpu_s=dict(cpu_s), rss_bytes=dict(rss_bytes))
