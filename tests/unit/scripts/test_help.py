"""Every command tells what it does on a fresh clone, before anything is set up."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.stack_process import ROOT

COMMANDS = sorted(
    path.name
    for path in (ROOT / "scripts").iterdir()
    if path.is_file() and os.access(path, os.X_OK) and not path.name.startswith("_")
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code alone, without an environment."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("scripts", "adapter_sync"):
        ignored = shutil.ignore_patterns("*.pyc")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_set_up(clone: Path, command: str) -> None:
    bare = {"PATH": os.defpath, "HOME": str(clone)}
    # The interpreter below the environment: it has none of the project's packages.
    python = Path(os.path.realpath(ROOT / ".venv" / "bin" / "python")).parent
    bare["PATH"] = f"{python}:{bare['PATH']}"
    done = subprocess.run(
        [str(clone / "scripts" / command), "--help"],
        env=bare,
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.lower().startswith("usage:")
    assert not (clone / ".venv").exists()
