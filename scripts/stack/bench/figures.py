"""From what was measured to the figures that are told. Pure: no clock, no process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

MS_PER_S = 1000
NOT_THE_SERVERS = frozenset({"engine core", "worker", "load client"})
"""The processes that compute the tokens, which are the same in all servers, and the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of the load client: how long it took, and what each request and token waited."""

    seconds: float
    output_tokens: int
    ttfts_s: Sequence[float]
    itls_s: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a server's processes used in the meantime, by their names."""

    cpu_s: Mapping[str, float]
    rss_bytes: Mapping[str, int]


class Figure(BaseModel):
    """One of the tables that go into the JSON file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Percentiles(Figure):
    """Of times, in milliseconds."""

    p50: float
    p99: float


class Run(Figure):
    """One server under one load; several rounds are one run."""

    server: str
    scenario: str
    streams: int
    output_tokens_per_s: float
    ttft_ms: Percentiles
    itl_ms: Percentiles
    cpu_ms_per_1k_tokens: dict[str, float]
    rss_mb: dict[str, float]

    @property
    def own_cpu(self) -> dict[str, float]:
        """The CPU time of what the servers differ in."""
        cpu = self.cpu_ms_per_1k_tokens
        return {name: value for name, value in cpu.items() if name not in NOT_THE_SERVERS}


class HotLoad(Figure):
    """An adapter's way from the upload's last byte to its first token.

    `floor` is vLLM's server's, without its first token and that alone. The gaps are of a running
    stream, this server's and the floor's; None when none ran.
    """

    mb: float
    load: str
    stages_s: dict[str, float]
    total_s: float
    floor_s: float
    floor_first_token_s: float
    longest_gap_ms: float | None
    floor_longest_gap_ms: float | None


class Document(Figure):
    """The JSON file. `engine`, `machine` and `command` say what the figures are of."""

    engine: str
    machine: str
    command: str
    runs: list[Run]
    hot_load: list[HotLoad]


def percentiles_ms(values_s: Sequence[float]) -> Percentiles:
    """The median and the 99th percentile, between two values by their distance to each.

    Raises ValueError when there is no value.
    """
    if not values_s:
        raise ValueError("there is nothing to take percentiles of")
    p50, p99 = np.percentile(np.asarray(values_s) * MS_PER_S, [50, 99])
    return Percentiles(p50=round(float(p50), 3), p99=round(float(p99), 3))


def run_of(
    server: str, scenario: str, streams: int, measured: Sequence[tuple[Sample, Cost]]
) -> Run:
    """One run of all rounds: every request and token counts the same, whichever round's it was."""
    samples = [sample for sample, _ in measured]
    tokens = sum(sample.output_tokens for sample in samples)
    return Run(
        server=server,
        scenario=scenario,
        streams=streams,
        output_tokens_per_s=round(tokens / sum(sample.seconds for sample in samples), 2),
        ttft_ms=percentiles_ms([each for sample in samples for each in sample.ttfts_s]),
        itl_ms=percentiles_ms([each for sample in samples for each in sample.itls_s]),
        cpu_ms_per_1k_tokens=_cpu_ms_per_1k_tokens([cost for _, cost in measured], tokens),
        rss_mb=_rss_mb([cost for _, cost in measured]),
    )


def _cpu_ms_per_1k_tokens(costs: Sequence[Cost], tokens: int) -> dict[str, float]:
    names = sorted({name for cost in costs for name in cost.cpu_s})
    totals = {name: sum(cost.cpu_s.get(name, 0) for cost in costs) for name in names}
    return {name: round(total * MS_PER_S * 1000 / tokens, 1) for name, total in totals.items()}


def _rss_mb(costs: Sequence[Cost]) -> dict[str, float]:
    """The most of any round."""
    names = sorted({name for cost in costs for name in cost.rss_bytes})
    return {
        name: round(max(cost.rss_bytes.get(name, 0) for cost in costs) / 1e6, 1) for name in names
    }
