"""The figures as plots, each as PNG and as SVG."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("Agg")  # before pyplot, which would look for a screen

from matplotlib import pyplot as plt

from stack.bench.figures import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
PANEL_INCHES = (4.5, 3.6)
COLORS = mpl.colormaps["tab20"]
Value = Callable[[Run], float]
Parts = Callable[[Run], dict[str, float]]


def write_plots(runs: Sequence[Run], folder: Path) -> list[Path]:
    """One file for each figure and format; returns them."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        *_lines(runs, folder / "throughput", "output tokens/s", {"": throughput}),
        *_lines(
            runs,
            folder / "first_token",
            "first token, ms",
            {"p50": lambda run: run.ttft_ms.p50, "p99": lambda run: run.ttft_ms.p99},
        ),
        *_lines(
            runs,
            folder / "gap",
            "gap between tokens, ms",
            {"p50": lambda run: run.itl_ms.p50, "p99": lambda run: run.itl_ms.p99},
        ),
        *_bars(
            runs,
            folder / "cpu",
            "CPU ms for 1,000 tokens,\nwithout engine and client",
            lambda run: run.own_cpu,
        ),
        *_bars(runs, folder / "memory", "resident memory, MB", lambda run: run.rss_mb),
    ]


def throughput(run: Run) -> float:
    """What is plotted first."""
    return run.output_tokens_per_s


def _lines(runs: Sequence[Run], path: Path, label: str, values: dict[str, Value]) -> list[Path]:
    """A panel for each scenario: a line for each server, one style for each of the values."""
    figure, panels = _panels(len(_distinct(run.scenario for run in runs)))
    for panel, scenario in zip(panels, _distinct(run.scenario for run in runs), strict=True):
        for color, server in enumerate(_distinct(run.server for run in runs)):
            shown = [run for run in runs if (run.scenario, run.server) == (scenario, server)]
            for (name, value), style in zip(values.items(), ("-", "--"), strict=False):
                panel.plot(
                    [run.streams for run in shown],
                    [value(run) for run in shown],
                    style,
                    marker="o",
                    color=f"C{color}",
                    label=f"{server} {name}".strip(),
                )
        panel.set_title(scenario)
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_formatter("{x:.0f}")
        panel.set_xlabel("streams")
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel(label)
    panels[0].legend(fontsize="small")
    return _saved(figure, path)


def _bars(runs: Sequence[Run], path: Path, label: str, parts: Parts) -> list[Path]:
    """A panel for each scenario: a bar for each server and stream count, a part a process."""
    scenarios = _distinct(run.scenario for run in runs)
    processes = _distinct(name for run in runs for name in sorted(parts(run)))
    figure, panels = _panels(len(scenarios))
    for panel, scenario in zip(panels, scenarios, strict=True):
        shown = [run for run in runs if run.scenario == scenario]
        places = [f"{run.server} {run.streams}" for run in shown]
        below = [0.0] * len(shown)
        for number, process in enumerate(processes):
            heights = [parts(run).get(process, 0.0) for run in shown]
            panel.bar(places, heights, bottom=below, label=process, color=COLORS(number))
            below = [low + height for low, height in zip(below, heights, strict=True)]
        panel.set_title(scenario)
        panel.tick_params(axis="x", labelrotation=90)
    panels[0].set_ylabel(label)
    panels[-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return _saved(figure, path)


def _panels(count: int) -> "tuple[Figure, Sequence[Axes]]":
    width, height = PANEL_INCHES
    figure, grid = plt.subplots(
        1, count, figsize=(width * count, height), squeeze=False, layout="constrained"
    )
    return figure, list(grid[0])


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _saved(figure: "Figure", path: Path) -> list[Path]:
    files = [path.with_suffix(f".{each}") for each in FORMATS]
    for file in files:
        figure.savefig(file, dpi=120)
    plt.close(figure)
    return files
