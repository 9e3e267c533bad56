"""scripts/bench with ready tokens: a real Triton, gateway and load client, but no engine."""

import json
import subprocess
from pathlib import Path

from tests.stack_process import ROOT

STREAMS = 4
TOKENS_PER_S = 100


def test_both_ways_to_ready_tokens_are_measured(tmp_path: Path) -> None:
    words = ["--ready-tokens", str(TOKENS_PER_S), "--streams", str(STREAMS)]
    done = subprocess.run(
        [str(ROOT / "scripts" / "bench"), *words, "--out", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "bench.json").read_text())
    assert [(run["server"], run["streams"]) for run in document["runs"]] == [
        ("ours", STREAMS),
        ("triton", STREAMS),
    ]
    for run in document["runs"]:
        # Nobody can be faster than the tokens come.
        assert 0 < run["output_tokens_per_s"] <= STREAMS * TOKENS_PER_S
        assert run["ttft_ms"]["p50"] <= run["ttft_ms"]["p99"]
        assert {"gateway", "stub", "tritonserver"} <= run["cpu_ms_per_1k_tokens"].keys()
    ours, triton = (run["cpu_ms_per_1k_tokens"]["gateway"] for run in document["runs"])
    assert ours > triton
    assert (tmp_path / "throughput.png").stat().st_size > 0
