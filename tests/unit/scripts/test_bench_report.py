"""What scripts/bench writes."""

import json
from pathlib import Path

import pytest
from stack.bench.figures import Document, HotLoad, Percentiles, Run
from stack.bench.report import markdown
from stack.bench.results import write_results


def run(server: str, tokens_per_s: float, streams: int = 8) -> Run:
    return Run(
        server=server,
        scenario="base",
        streams=streams,
        output_tokens_per_s=tokens_per_s,
        ttft_ms=Percentiles(p50=10.4, p99=20.6),
        itl_ms=Percentiles(p50=1.23, p99=4.56),
        cpu_ms_per_1k_tokens={"others": 0.2, "gateway": 57.0, "worker": 1234.4},
        rss_mb={"gateway": 150.0},
    )


@pytest.fixture
def document() -> Document:
    return Document(
        engine="vLLM",
        machine="2 cores",
        command="scripts/bench --quick",
        runs=[run("ours", 150.0), run("vllm", 120.0), run("ours", 10.0, streams=1)],
        hot_load=[
            HotLoad(
                mb=1.2,
                load="idle",
                stages_s={"load": 0.25, "first_token": 0.5},
                total_s=0.75,
                floor_s=0.2,
                floor_first_token_s=0.4,
                longest_gap_ms=None,
                floor_longest_gap_ms=None,
            )
        ],
    )


def rows(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|") and "---" not in line]


def test_a_row_tells_what_clients_see_and_how_it_compares_with_vllm(document: Document) -> None:
    assert rows(markdown(document))[1:3] == [
        "| base | 8 | ours | 150.0 | 1.25 | 10 | 21 | 1.2 | 4.6 |",
        "| base | 8 | vllm | 120.0 | 1.00 | 10 | 21 | 1.2 | 4.6 |",
    ]


def test_without_vllm_under_the_same_load_there_is_nothing_to_compare_with(
    document: Document,
) -> None:
    assert rows(markdown(document))[3].startswith("| base | 1 | ours | 10.0 |  | 10 |")


def test_processes_are_listed_with_the_costliest_first_and_without_those_that_cost_nothing(
    document: Document,
) -> None:
    assert "| base | 8 | ours | 57 | worker 1234, gateway 57 | gateway 150 |" in rows(
        markdown(document)
    )


def test_a_hot_load_is_told_in_its_stages(document: Document) -> None:
    assert rows(markdown(document))[-1] == (
        "| 1.2 | idle | load 0.25, first_token 0.50 | 0.75 | 0.20 | 0.40 |  |  |"
    )


def test_beside_streams_it_tells_how_long_one_stood_still(document: Document) -> None:
    (idle,) = document.hot_load
    busy = idle.model_copy(
        update={"load": "busy", "longest_gap_ms": 120.4, "floor_longest_gap_ms": 99.6}
    )
    only_hot_loads = document.model_copy(update={"runs": [], "hot_load": [busy]})
    (_, row) = rows(markdown(only_hot_loads))
    assert row.endswith("| 0.75 | 0.20 | 0.40 | 120 | 100 |")


def test_json_markdown_and_plots_are_written(document: Document, tmp_path: Path) -> None:
    elsewhere = tmp_path / "bench-of-today.json"
    write_results(document, tmp_path / "out", elsewhere)
    written = json.loads(elsewhere.read_text())
    assert written["runs"][0] == {
        "server": "ours",
        "scenario": "base",
        "streams": 8,
        "output_tokens_per_s": 150.0,
        "ttft_ms": {"p50": 10.4, "p99": 20.6},
        "itl_ms": {"p50": 1.23, "p99": 4.56},
        "cpu_ms_per_1k_tokens": {"others": 0.2, "gateway": 57.0, "worker": 1234.4},
        "rss_mb": {"gateway": 150.0},
    }
    assert written["hot_load"][0]["total_s"] == 0.75
    plots = ("cpu", "first_token", "gap", "memory", "throughput")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["bench.json", "bench.md", *(f"{n}.{kind}" for n in plots for kind in ("png", "svg"))]
    )
