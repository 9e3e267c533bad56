"""A short run of random requests against a real engine; docs/testing.md says how to run longer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.engine.running import EMBEDDING, GENERATION

ROOT = Path(__file__).parents[2]
SECONDS = {
    GENERATION: int(os.environ.get("ENGINE_FUZZ_SECONDS", "90")),
    EMBEDDING: int(os.environ.get("ENGINE_FUZZ_SECONDS", "15")),
}
SEED = os.environ.get("ENGINE_FUZZ_SEED", "11")
START_S = 600


@pytest.mark.timeout(max(SECONDS.values()) + 2 * START_S)
@pytest.mark.parametrize("base_model", [GENERATION, EMBEDDING])
def test_no_request_breaks_the_engine(base_model: str, tmp_path: Path) -> None:
    seconds = SECONDS[base_model]
    out = tmp_path / "requests.jsonl"
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.engine.run", f"--base-model={base_model}"),
            *(f"--seconds={seconds}", f"--seed={SEED}", f"--out={out}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + START_S,
        check=False,
    )
    requests = out.read_text()[-20000:] if out.exists() else ""
    assert ended.returncode == 0, f"{ended.stdout[-8000:]}\n{requests}\n{ended.stderr[-4000:]}"
