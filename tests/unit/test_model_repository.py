"""The committed base model: what Triton reads is what scripts/add-base-model would write."""

import json
import subprocess
from pathlib import Path

import pytest

from adapter_sync.companion_folder import TEMPLATES
from adapter_sync.lora_map import WRITTEN_SUFFIXES

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
# A plain file of this name keeps Triton's stub from writing a folder: see docs/triton.md.
PLAIN_FILE = "1/__pycache__"


def git(*words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True
    ).stdout


def committed() -> list[str]:
    names = git("ls-files", "model_repository").splitlines()
    return sorted({Path(name).parts[1] for name in names})


@pytest.mark.parametrize("base_model", committed())
@pytest.mark.parametrize("name", ["config.pbtxt", "1/model.py", PLAIN_FILE])
def test_a_committed_base_model_is_made_of_the_template(base_model: str, name: str) -> None:
    file = REPOSITORY / base_model / name
    assert file.is_file()
    assert file.read_bytes() == (TEMPLATES / "base" / name).read_bytes()


@pytest.mark.parametrize("base_model", committed())
def test_a_committed_base_model_has_nothing_else_but_its_engine_arguments(base_model: str) -> None:
    folder = REPOSITORY / base_model
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {"config.pbtxt", "1/model.py", "1/model.json", PLAIN_FILE}
    arguments = json.loads((folder / "1" / "model.json").read_text())
    assert arguments["model"] == base_model
    assert arguments["enable_lora"] is True


def test_nothing_that_adapter_sync_writes_is_committed() -> None:
    assert committed()
    assert not any(name.endswith(WRITTEN_SUFFIXES) for name in committed())


@pytest.mark.parametrize(
    "folder",
    [
        *(f"model_repository/{name}" for name in committed()),
        "adapter_sync/triton_models/base",
        "adapter_sync/triton_models/companion",
        "adapter_sync/triton_models/adapter_files",
    ],
)
def test_git_keeps_the_plain_file(folder: str) -> None:
    """The name is ignored everywhere else."""
    assert git("ls-files", f"{folder}/{PLAIN_FILE}").splitlines() == [f"{folder}/{PLAIN_FILE}"]
    assert (ROOT / folder / PLAIN_FILE).is_file()
    assert "on purpose" in (ROOT / folder / PLAIN_FILE).read_text()
