"""The figures as a Markdown page: a table of what users see, and one of what it costs. Pure."""

from collections.abc import Iterator, Sequence

from stack.bench.figures import Document, HotLoad, Run

REFERENCE = "vllm"
"""Whose output the others' is told as a multiple of."""


def markdown(document: Document) -> str:
    """The whole page."""
    lines = [
        f"Engine: {document.engine}. Machine: {document.machine}.",
        f"Command: `{document.command}`",
    ]
    if document.runs:
        lines += ["", *seen_table(document.runs), "", *cost_table(document.runs)]
    if document.hot_load:
        lines += ["", *hot_load_table(document.hot_load)]
    return "\n".join(lines) + "\n"


def seen_table(runs: Sequence[Run]) -> Iterator[str]:
    """What a client sees, the servers under one load below one another."""
    reference = {
        (run.scenario, run.streams): run.output_tokens_per_s
        for run in runs
        if run.server == REFERENCE
    }
    yield from _head(
        "scenario",
        "streams",
        "server",
        "tokens/s",
        f"of {REFERENCE}'s",
        "first token ms p50",
        "p99",
        "gap ms p50",
        "p99",
    )
    for run in runs:
        base = reference.get((run.scenario, run.streams))
        yield _row(
            run.scenario,
            run.streams,
            run.server,
            f"{run.output_tokens_per_s:.1f}",
            "" if base is None else f"{run.output_tokens_per_s / base:.2f}",
            f"{run.ttft_ms.p50:.0f}",
            f"{run.ttft_ms.p99:.0f}",
            f"{run.itl_ms.p50:.1f}",
            f"{run.itl_ms.p99:.1f}",
        )


def cost_table(runs: Sequence[Run]) -> Iterator[str]:
    """CPU time for 1,000 tokens and resident memory of each process."""
    yield from _head(
        "scenario",
        "streams",
        "server",
        "CPU ms for 1,000 tokens, without engine and client",
        "of each process",
        "memory MB",
    )
    for run in runs:
        yield _row(
            run.scenario,
            run.streams,
            run.server,
            f"{sum(run.own_cpu.values()):.0f}",
            _listed(run.cpu_ms_per_1k_tokens),
            _listed(run.rss_mb),
        )


def hot_load_table(loads: Sequence[HotLoad]) -> Iterator[str]:
    """From an upload's end to the first token."""
    yield from _head(
        "adapter MB",
        "load",
        "stages s",
        "total s",
        "floor s",
        "its first token s",
        "longest gap of a stream ms",
        "floor's",
    )
    for each in loads:
        stages = ", ".join(f"{name} {value:.2f}" for name, value in each.stages_s.items())
        gaps_ms = (each.longest_gap_ms, each.floor_longest_gap_ms)
        yield _row(
            f"{each.mb:g}",
            each.load,
            stages,
            f"{each.total_s:.2f}",
            f"{each.floor_s:.2f}",
            f"{each.floor_first_token_s:.2f}",
            *("" if gap_ms is None else f"{gap_ms:.0f}" for gap_ms in gaps_ms),
        )


def _listed(figures: dict[str, float]) -> str:
    largest_first = sorted(figures.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.0f}" for name, value in largest_first if value >= 1)


def _head(*titles: str) -> Iterator[str]:
    yield _row(*titles)
    yield _row(*("---" for _ in titles))


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"
