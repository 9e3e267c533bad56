"""What is measured, in which order: scenarios, stream counts, rounds. Pure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SERVERS = ("ours", "vllm", "litellm", "triton")
HOT_LOAD_SERVERS = ("ours", "vllm")
STREAMS = (1, 8, 32, 64, 128)
ADAPTERS = {"base": 0, "one": 1, "eight": 8, "oversubscribed": 16}
"""How many adapters take turns; the base model's engine has slots for eight (max_loras)."""
FIRST_SEED = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a whole measurement does.

    A run's requests are `requests_per_stream` for each stream, but at least `least_requests`;
    each has `input_tokens` random tokens and is answered with exactly `output_tokens`.
    No run begins more than `within_s` after all servers are ready. Adapters of `hot_load_mb` are
    loaded after the runs, `rounds` times each.
    `ready_tokens_per_s` is for a stream without an engine; None is vLLM.
    """

    servers: Sequence[str]
    scenarios: Sequence[str]
    streams: Sequence[int]
    rounds: int
    requests_per_stream: float
    least_requests: int
    input_tokens: int = 64
    output_tokens: int = 32
    hot_load_mb: Sequence[int] = ()
    within_s: float = math.inf
    ready_tokens_per_s: float | None = None

    @property
    def engine(self) -> str:
        """What makes the tokens, in words."""
        if self.ready_tokens_per_s is None:
            return "vLLM"
        return f"ready tokens, {self.ready_tokens_per_s:g} a second for each stream"

    def steps(self) -> "Iterator[Step]":
        """The runs in their order.

        The servers take turns under each load, so that what else the machine does meets all alike;
        who begins changes, too.
        """
        number = 0
        for _ in range(self.rounds):
            for scenario in self.scenarios:
                for streams in self.streams:
                    for turn in range(len(self.servers)):
                        server = self.servers[(turn + number) % len(self.servers)]
                        yield Step(
                            server=server,
                            scenario=scenario,
                            streams=streams,
                            requests=self._requests(streams),
                            seed=self._seed(number, server),
                        )
                    number += 1

    def _requests(self, streams: int) -> int:
        return max(self.least_requests, math.ceil(streams * self.requests_per_stream))

    def _seed(self, number: int, server: str) -> int:
        """Of its own for each run: two servers here share an engine, and its prefix cache."""
        return FIRST_SEED + number * len(SERVERS) + SERVERS.index(server)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One run of the load client."""

    server: str
    scenario: str
    streams: int
    requests: int
    seed: int


FULL = Plan(
    servers=SERVERS,
    scenarios=tuple(ADAPTERS),
    streams=STREAMS,
    rounds=3,
    requests_per_stream=4,
    least_requests=16,
    output_tokens=64,
    hot_load_mb=(1, 50, 160, 500),
)
QUICK = Plan(
    servers=SERVERS,
    scenarios=("base", "eight"),
    streams=(1, 8),
    rounds=1,
    requests_per_stream=1.5,
    least_requests=4,
    input_tokens=32,
    output_tokens=16,
    hot_load_mb=(1, 50),
    within_s=240,
)
HOT_LOAD = Plan(
    servers=HOT_LOAD_SERVERS,
    scenarios=(),
    streams=(),
    rounds=3,
    requests_per_stream=0,
    least_requests=0,
    hot_load_mb=FULL.hot_load_mb,
)
READY_TOKENS = Plan(
    servers=("ours", "triton"),
    scenarios=("base",),
    streams=STREAMS,
    rounds=1,
    requests_per_stream=2,
    least_requests=3,
    output_tokens=64,
    ready_tokens_per_s=50,
)
