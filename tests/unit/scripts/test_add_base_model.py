"""scripts/add-base-model, through its main and as the process that users start."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import huggingface_hub.constants
import pytest
import stack.add_base_model
from stack.add_base_model import CPU_ARGUMENTS, LORA_RANKS, main
from stack.installation import free_ports

from adapter_sync.base_models import base_model_folders
from adapter_sync.companion_folder import TEMPLATES

ROOT = Path(__file__).parents[3]
EMBEDDING_MODEL = ROOT / ".runtime" / "models" / "all-minilm-l6-v2"


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation of its own; the folders are not there yet."""
    monkeypatch.setenv("LORA_HOME", str(tmp_path))
    for name, folder in (
        ("MODEL_REPOSITORY", "repository"),
        ("LORA_DATA_DIR", "data"),
        ("LORA_MODELS_DIR", "models"),
    ):
        monkeypatch.setenv(name, folder)
    # Neither the hub nor a Triton that happens to run here.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TRITON_GRPC_PORT", str(free_ports(1)[0]))
    return tmp_path / "repository"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere" / "llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def engine_arguments(repository: Path, name: str) -> dict[str, object]:
    document: dict[str, object] = json.loads((repository / name / "1" / "model.json").read_text())
    return document


def test_both_folders_are_made(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["llama", "--model", "meta-llama/Llama-3.1-8B-Instruct"]) == 0
    assert files(repository) == [
        "llama-adapter-files/1/__pycache__",
        "llama-adapter-files/1/model.py",
        "llama-adapter-files/config.pbtxt",
        "llama-adapters/1/__pycache__",
        "llama-adapters/1/model.py",
        "llama-adapters/config.pbtxt",
        "llama/1/__pycache__",
        "llama/1/model.json",
        "llama/1/model.py",
        "llama/config.pbtxt",
    ]
    for kind, name in (
        ("base", "llama"),
        ("companion", "llama-adapters"),
        ("adapter_files", "llama-adapter-files"),
    ):
        for file in files(TEMPLATES / kind):
            assert (repository / name / file).read_bytes() == (TEMPLATES / kind / file).read_bytes()
    assert base_model_folders(repository) == [repository / "llama"]
    assert "at its next start" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("torch", "rank", "more"), [("2.13.0", 64, {}), ("2.13.0+cpu", 16, CPU_ARGUMENTS)]
)
def test_the_defaults_are_the_accelerators_or_the_cpus(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    torch: str,
    rank: int,
    more: dict[str, object],
) -> None:
    monkeypatch.setattr(stack.add_base_model, "version", lambda _: torch)
    main(["llama", "--model", "meta-llama/Llama-3.1-8B-Instruct"])
    assert engine_arguments(repository, "llama") == {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "enable_lora": True,
        "max_loras": 8,
        "max_lora_rank": rank,
        "max_cpu_loras": 32,
        **more,
    }


def test_everything_may_be_chosen(repository: Path) -> None:
    words = ["--max-lora-rank", "16", "--max-loras", "2", "--max-cpu-loras", "5"]
    more = ["tensor-parallel-size=8", "dtype=bfloat16", 'a={"b": [1]}']
    chosen = [word for each in more for word in ("--engine-argument", each)]
    assert main(["llama", "--model", "org/llama", *words, *chosen]) == 0
    assert engine_arguments(repository, "llama") == {
        "model": "org/llama",
        "enable_lora": True,
        "max_loras": 2,
        "max_lora_rank": 16,
        "max_cpu_loras": 5,
        **CPU_ARGUMENTS,
        "tensor_parallel_size": 8,
        "dtype": "bfloat16",
        "a": {"b": [1]},
    }


def test_a_base_model_without_adapters_has_no_companion(repository: Path) -> None:
    words = ["--model", "org/minilm", "--no-adapters", "--engine-argument", "runner=pooling"]
    assert main(["minilm", *words]) == 0
    assert engine_arguments(repository, "minilm") == {
        "model": "org/minilm",
        **CPU_ARGUMENTS,
        "runner": "pooling",
    }
    assert [folder.name for folder in repository.iterdir()] == ["minilm"]


def test_a_model_that_makes_embeddings_is_known_by_its_files(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["minilm", "--model", str(EMBEDDING_MODEL)]) == 0
    assert engine_arguments(repository, "minilm") == {
        "model": str(EMBEDDING_MODEL),
        **CPU_ARGUMENTS,
        "runner": "pooling",
    }
    assert [folder.name for folder in repository.iterdir()] == ["minilm"]
    assert "it takes no adapters" in capsys.readouterr().out


def test_whoever_says_what_runs_it_is_believed(repository: Path) -> None:
    words = ["--model", str(EMBEDDING_MODEL), "--engine-argument", "runner=generate"]
    assert main(["minilm", *words]) == 0
    assert engine_arguments(repository, "minilm")["enable_lora"] is True


def test_a_model_that_can_not_be_looked_at_is_taken_to_generate(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["llama", "--model", "org/llama"]) == 0
    assert engine_arguments(repository, "llama")["enable_lora"] is True
    assert "add it with --no-adapters" in capsys.readouterr().err


@pytest.mark.parametrize("relative", ["./elsewhere/llama", "elsewhere/llama"])
def test_a_folder_is_written_as_the_engine_will_find_it(
    repository: Path, weights: Path, relative: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(weights.parent.parent)
    assert main(["one", "--model", relative]) == 0
    assert main(["two", "--model", str(weights)]) == 0
    assert engine_arguments(repository, "one")["model"] == str(weights)
    assert engine_arguments(repository, "two")["model"] == str(weights)


def test_a_model_below_the_models_folder_keeps_its_name(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "models")
    assert main(["small", "--model", "small"]) == 0
    assert engine_arguments(repository, "small")["model"] == "small"


def test_a_second_base_model_leaves_the_first_alone(repository: Path) -> None:
    main(["one", "--model", "org/one"])
    before = {file: (repository / file).stat().st_ctime_ns for file in files(repository)}
    main(["two", "--model", "org/two"])
    assert (
        before.items()
        <= {file: (repository / file).stat().st_ctime_ns for file in files(repository)}.items()
    )


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "-x",
        "a/b",
        "../out",
        "a b",
        "ends-",
        "llama-adapters",
        "llama-adapter-files",
        "é",
        "a" * 129,
    ],
)
def test_a_bad_name_is_refused_and_leaves_nothing(
    repository: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "org/llama", "--", name]) == 1
    assert "can't be a base model's name" in capsys.readouterr().err
    assert not repository.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_that_is_there_is_refused_and_kept(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["llama", "--model", "org/one"])
    assert main(["llama", "--model", "org/two"]) == 1
    assert "there is a base model 'llama' already" in capsys.readouterr().err
    assert engine_arguments(repository, "llama")["model"] == "org/one"


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere", "~/nowhere", "../data", "empty"])
def test_a_path_without_a_model_is_refused_and_leaves_nothing(
    repository: Path,
    tmp_path: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = tmp_path / "work"
    (work / "empty").mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["llama", "--model", model]) == 1
    assert "it has no config.json" in capsys.readouterr().err
    assert not repository.exists()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("rank", ["0", "7", "48", "1024", "big"])
def test_a_rank_that_vllm_does_not_take_is_refused(
    repository: Path, rank: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        main(["llama", "--model", "org/llama", "--max-lora-rank", rank])
    assert refused.value.code == 2
    assert "--max-lora-rank" in capsys.readouterr().err
    assert not repository.exists()


@pytest.mark.parametrize("word", ["novalue", "=5", ""])
def test_an_engine_argument_without_key_or_value_is_refused(
    repository: Path, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["llama", "--model", "org/llama", "--engine-argument", word]) == 1
    assert "is not KEY=VALUE" in capsys.readouterr().err
    assert not repository.exists()


def test_a_wrong_setting_is_told(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_HTTP_PORT", "http")
    assert main(["llama", "--model", "org/llama"]) == 1
    assert "TRITON_HTTP_PORT" in capsys.readouterr().err
    assert not repository.exists()


def test_nothing_of_it_stays_in_staging(repository: Path, tmp_path: Path) -> None:
    main(["llama", "--model", "org/llama"])
    assert repository.is_dir()
    assert files(tmp_path / "data") == []


def test_the_ranks_are_vllms_own() -> None:
    """Read from vLLM's file, since importing it takes a quarter of a minute."""
    vllm = find_spec("vllm")
    assert vllm is not None
    source = Path(str(vllm.origin)).parent / "config" / "lora.py"
    lines = source.read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("MaxLoRARanks = ")]
    assert line == f"MaxLoRARanks = Literal{list(LORA_RANKS)}"


def test_the_command_works_as_users_start_it(repository: Path, tmp_path: Path) -> None:
    environment = os.environ | {
        "MODEL_REPOSITORY": str(repository),
        "LORA_DATA_DIR": str(tmp_path / "data"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(ROOT / "scripts" / "add-base-model"), "llama", "--model"]
    added = subprocess.run(
        [*command, "org/llama"], env=environment, capture_output=True, text=True, check=False
    )
    assert added.returncode == 0, added.stderr
    assert engine_arguments(repository, "llama")["model"] == "org/llama"
    refused = subprocess.run(
        [*command, "org/other"], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("add-base-model: there is a base model 'llama' already")


def test_help_works_before_the_set_up_with_a_bare_python(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    python = tmp_path / "bin" / "python3.11"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys._base_executable}" -S "$@"\n')  # type: ignore[attr-defined]
    python.chmod(0o755)
    shown = subprocess.run(
        [str(tmp_path / "scripts" / "add-base-model"), "--help"],
        env={"PATH": f"{python.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert "--max-lora-rank" in shown.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "scripts"]
