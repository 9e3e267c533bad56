"""A short run of the fuzzer for each target; FUZZ_SECONDS makes it longer: see docs/testing.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.corpus import write_corpus, write_dictionary

ROOT = Path(__file__).parents[2]
SECONDS = int(os.environ.get("FUZZ_SECONDS", "10"))
START_S = 240
TARGETS = ("weights", "config", "bundle")


@pytest.mark.timeout(SECONDS + START_S)
@pytest.mark.parametrize("target", TARGETS)
def test_whatever_comes_in_is_read_alike_or_refused_and_leaves_no_file(
    target: str, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    write_corpus(target, corpus)
    write_dictionary(tmp_path / "words")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.run", target, str(corpus)),
            *(f"-max_total_time={SECONDS}", f"-artifact_prefix={tmp_path}/", "-max_len=20000"),
            f"-dict={tmp_path / 'words'}",
        ],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=SECONDS + START_S,
        check=False,
    )
    broken = [each.name for each in tmp_path.iterdir() if each.name not in ("corpus", "words")]
    assert ended.returncode == 0, f"{broken}\n{ended.stdout[-4000:]}\n{ended.stderr[-8000:]}"
    assert broken == []
    assert "DONE" in ended.stderr
