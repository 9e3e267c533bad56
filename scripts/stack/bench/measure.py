"""The measurement: the servers started, the load client run against each in turn."""

import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from stack.bench.client import Load, LoadClient, RequestsFailedError, running_client
from stack.bench.figures import Cost, Document, HotLoad, Run, Sample, run_of
from stack.bench.hot_load import hot_loads
from stack.bench.processes import cost_between, used_by
from stack.bench.ready_tokens import running_ready_tokens
from stack.bench.scenarios import HOT_LOAD_SERVERS, Plan, Step
from stack.bench.servers import TOKENIZER, Server, running_servers

WARM_UP_STREAMS = 8
WARM_UP_TOKENS = 4
WARM_UP_SEED = 1
Place = tuple[str, int, str]
"""A scenario, a stream count and a server: what the rounds have in common."""


def measure(plan: Plan, folder: Path, *, command: str, report: Callable[[Document], None]) -> None:
    """Do what the plan says; `folder` is for the servers' files and logs.

    Ctrl-C ends it early. `report` is called with what was measured until then, however it ends.
    Raises ChildError, LoadError.
    """
    measured: dict[Place, list[tuple[Sample, Cost]]] = defaultdict(list)
    hot: list[HotLoad] = []
    say(f"logs are in {folder}")
    try:
        if plan.scenarios:
            for place, sample_and_cost in measurements(plan, folder):
                measured[place].append(sample_and_cost)
        if plan.hot_load_mb and set(HOT_LOAD_SERVERS) <= set(plan.servers):
            say(f"starting {', '.join(HOT_LOAD_SERVERS)} for hot-loads")
            for each in hot_loads(plan.hot_load_mb, plan.rounds, folder / "hot-load"):
                say(f"hot-load of {each.mb:g} MB, {each.load}: {each.total_s:.2f} s")
                hot.append(each)
    except KeyboardInterrupt:
        say("stopped: the report holds what was measured until now")
    finally:
        runs = runs_of(measured, plan.servers)
        report(
            Document(
                engine=plan.engine, machine=machine(), command=command, runs=runs, hot_load=hot
            )
        )


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


@contextmanager
def started(plan: Plan, folder: Path) -> Iterator[Mapping[str, Server]]:
    """The plan's servers by name. Raises ChildError."""
    if plan.ready_tokens_per_s is None:
        servers = running_servers(plan.servers, plan.scenarios, folder)
    else:
        servers = running_ready_tokens(plan.servers, plan.ready_tokens_per_s, folder)
    with servers as running:
        yield running


def warm_up(server: Server, plan: Plan, client: LoadClient) -> None:
    """Some requests that don't count: every model that will be asked for has answered."""
    models = list(dict.fromkeys(name for each in plan.scenarios for name in server.models(each)))
    load = Load(
        models=models,
        streams=WARM_UP_STREAMS,
        prompts=max(WARM_UP_STREAMS, len(models)),
        input_tokens=plan.input_tokens,
        output_tokens=WARM_UP_TOKENS,
        seed=WARM_UP_SEED,
    )
    client.measure(server.target, load)


def measurements(plan: Plan, folder: Path) -> Iterator[tuple[Place, tuple[Sample, Cost]]]:
    """The plan's runs, each as it ends, as long as its time lasts once all servers are warm.

    One with failed requests is told of and left out. Raises ChildError, LoadError.
    """
    say(f"starting {', '.join(plan.servers)}")
    with running_client(folder / "client", TOKENIZER) as client, started(plan, folder) as servers:
        client.wait_until_ready()
        for server in servers.values():
            warm_up(server, plan, client)
        deadline = time.monotonic() + plan.within_s
        steps = list(plan.steps())
        for number, step in enumerate(steps, 1):
            place = (step.scenario, step.streams, step.server)
            load = f"{step.scenario}, {step.streams} streams, {step.server}"
            what = f"run {number} of {len(steps)}: {load}"
            if time.monotonic() > deadline:
                say(f"the time is over: {len(steps) - number + 1} runs are left out")
                return
            try:
                sample, cost = measured_once(step, servers[step.server], plan, client)
            except RequestsFailedError as error:
                say(f"{what}: left out: {error}")
                continue
            say(f"{what}: {sample.output_tokens / sample.seconds:.0f} tokens/s")
            yield place, (sample, cost)


def measured_once(
    step: Step, server: Server, plan: Plan, client: LoadClient
) -> tuple[Sample, Cost]:
    """One run, and what the server's processes and the client used. Raises LoadError."""
    load = Load(
        models=server.models(step.scenario),
        streams=step.streams,
        prompts=step.requests,
        input_tokens=plan.input_tokens,
        output_tokens=plan.output_tokens,
        seed=step.seed,
    )
    roots = [*server.roots, client.process]
    before = used_by(roots)
    sample = client.measure(server.target, load)
    return sample, cost_between(before, used_by(roots))


def runs_of(
    measured: Mapping[Place, Sequence[tuple[Sample, Cost]]], servers: Sequence[str]
) -> list[Run]:
    """The rounds put together, the servers under each load in the order they were asked for."""
    loads = dict.fromkeys((scenario, streams) for scenario, streams, _ in measured)
    places = [(*load, server) for load in loads for server in servers]
    return [
        run_of(server, scenario, streams, measured[scenario, streams, server])
        for scenario, streams, server in places
        if (scenario, streams, server) in measured
    ]


def machine() -> str:
    """The processor, how many of its cores there are, and the memory."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    memory_gb = psutil.virtual_memory().total / 1e9
    processor = names[0] if names else platform.machine()
    return f"{len(os.sched_getaffinity(0))} cores of {processor}, {memory_gb:.0f} GB"
