"""The quick part of scripts/chaos: faults done to a real installation."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.stack_process import ROOT


@pytest.mark.timeout(1800)
def test_faults_cost_clients_no_more_than_is_promised(tmp_path: Path) -> None:
    outcomes = tmp_path / "outcomes.json"
    ended = subprocess.run(
        [str(ROOT / "scripts" / "chaos"), "--quick", "--json", str(outcomes)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-4000:]
    assert len(json.loads(outcomes.read_text())) == 4
