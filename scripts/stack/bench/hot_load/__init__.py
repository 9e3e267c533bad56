"""How long a new adapter takes from its upload's last byte to its first token.

The floor is what can't be left out: copying the file, hashing it, and vLLM's own loading; its
first token is taken beside it. Both engines have the largest adapter's rank, which those of the
other scenarios do not, and for once the same kernels: with vLLM's own a step takes seconds at that
rank, also for the base model, and every load would wait for the end of one.
"""

import contextlib
import hashlib
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from engine.worker_extension import GROUP_ADAPTERS, WORKER_EXTENSION
from stack.bench.figures import HotLoad
from stack.bench.hot_load.adapter import Adapter, write_adapter, write_base_model
from stack.bench.hot_load.streams import running_streams
from stack.bench.hot_load.upload import read_first_token, upload_and_ask
from stack.bench.servers import Installation, Server, running_vllm_peer
from stack.child import all_at_once

WITHIN_S = 300
LOADS = ("idle", "busy")
REST_S = 1.0
"""Before each load: an engine's threads still spin on their cores when its work is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Servers:
    installation: Installation
    ours: Server
    vllm: Server


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """One hot-load: seconds of each stage, and the longest gap of a stream if any ran."""

    stages_s: dict[str, float]
    longest_gap_s: float | None

    @property
    def total_s(self) -> float:
        return sum(self.stages_s.values())


def hot_loads(sizes_mb: Sequence[int], rounds: int, folder: Path) -> Iterator[HotLoad]:
    """One of each size, idle and while eight streams of the base model run; medians of the rounds.

    The servers take turns within each round. Raises ChildError.
    """
    with _running_servers(sizes_mb, folder) as servers:
        for size_mb in sizes_mb:
            adapter = write_adapter(folder / f"adapter-{size_mb}mb", size_mb)
            for load in LOADS:
                ours, vllm = [], []
                for number in range(rounds):
                    name = f"hot-{size_mb}-{load}-{number}"
                    ours.append(_our_load(servers, adapter, load, name))
                    vllm.append(_their_load(servers.vllm, adapter, load, folder / name))
                yield _figure(adapter, load, ours, vllm)


@contextlib.contextmanager
def _running_servers(sizes_mb: Sequence[int], folder: Path) -> Iterator[_Servers]:
    installation = Installation(folder / "ours")
    write_base_model(installation.settings.model_repository, sizes_mb)
    extension = {"worker_extension_cls": WORKER_EXTENSION}
    model_json = write_base_model(folder / "vllm" / "model_repository", sizes_mb, extension)
    engines = {
        "ours": installation.running(),
        "vllm": running_vllm_peer(folder / "vllm", [], model_json=model_json),
    }
    with all_at_once(engines) as started:
        rpc = f"{started['vllm'].target.base_url}/collective_rpc"
        httpx.post(rpc, json={"method": GROUP_ADAPTERS}, timeout=WITHIN_S).raise_for_status()
        servers = _Servers(installation=installation, **started)
        _warm_up(servers, folder / "warm-up")
        yield servers


def _warm_up(servers: _Servers, folder: Path) -> None:
    """A load that doesn't count: what is imported and compiled at the first one is."""
    adapter = write_adapter(folder, 1)
    _our_load(servers, adapter, "idle", "warm-up")
    _their_load(servers.vllm, adapter, "idle", folder.with_name("warm-up-copy"))


def _our_load(servers: _Servers, adapter: Adapter, load: str, name: str) -> _Timed:
    return _timed(lambda: upload_and_ask(servers.installation, adapter, name), servers.ours, load)


def _their_load(vllm: Server, adapter: Adapter, load: str, folder: Path) -> _Timed:
    return _timed(lambda: _floor(vllm, adapter, folder), vllm, load)


def _timed(act: Callable[[], dict[str, float]], server: Server, load: str) -> _Timed:
    time.sleep(REST_S)
    if load == "idle":
        return _Timed(stages_s=act(), longest_gap_s=None)
    with running_streams(server) as longest_gap_s:
        begin = time.monotonic()
        stages_s = act()
        return _Timed(stages_s=stages_s, longest_gap_s=longest_gap_s(begin, time.monotonic()))


def _floor(vllm: Server, adapter: Adapter, folder: Path) -> dict[str, float]:
    """Seconds to copy, hash, and have vLLM's own server load the adapter; then to its token."""
    name = folder.name
    with httpx.Client(base_url=vllm.target.base_url, trust_env=False, timeout=WITHIN_S) as api:
        api.get("/health").raise_for_status()  # the connection is there
        began = time.perf_counter()
        copy = Adapter(folder=shutil.copytree(adapter.folder, folder))
        with copy.weights.open("rb") as file:
            hashlib.file_digest(file, "sha256")
        loaded = {"lora_name": name, "lora_path": str(copy.folder)}
        api.post("/v1/load_lora_adapter", json=loaded).raise_for_status()
        loaded_at = time.perf_counter()
        read_first_token(api, name)
        answered_at = time.perf_counter()
        api.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
    shutil.rmtree(folder)
    return {"floor": loaded_at - began, "first_token": answered_at - loaded_at}


def _figure(adapter: Adapter, load: str, ours: Sequence[_Timed], vllm: Sequence[_Timed]) -> HotLoad:
    floor_s = _median_stages_s(vllm)
    return HotLoad(
        mb=adapter.mb,
        load=load,
        stages_s=_median_stages_s(ours),
        total_s=round(statistics.median(each.total_s for each in ours), 3),
        floor_s=floor_s["floor"],
        floor_first_token_s=floor_s["first_token"],
        longest_gap_ms=_median_gap_ms(ours),
        floor_longest_gap_ms=_median_gap_ms(vllm),
    )


def _median_stages_s(loads: Sequence[_Timed]) -> dict[str, float]:
    return {
        stage: round(statistics.median(each.stages_s[stage] for each in loads), 3)
        for stage in loads[0].stages_s
    }


def _median_gap_ms(loads: Sequence[_Timed]) -> float | None:
    gaps_s = [each.longest_gap_s for each in loads if each.longest_gap_s is not None]
    return round(1000 * statistics.median(gaps_s), 1) if gaps_s else None
