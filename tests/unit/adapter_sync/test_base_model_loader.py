"""Which base models a running Triton is told to load and to drop."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adapter_sync.base_model_loader import BaseModelLoader, to_load
from adapter_sync.companion_folder import base_models_with_adapters
from adapter_sync.errors import TritonRefusedError, TritonUnavailableError
from adapter_sync.lora_map import LORA_MAP_FILE
from adapter_sync.triton_repository import ModelState

READY = ModelState(state="READY", reason="")
LOADING = ModelState(state="LOADING", reason="")
UNLOADED = ModelState(state="UNAVAILABLE", reason="unloaded")
FAILED = ModelState(state="UNAVAILABLE", reason="the engine does not start")
NEVER = ModelState(state="", reason="")


@pytest.mark.parametrize(
    ("told", "tried", "loads"),
    [
        (READY, None, False),
        (LOADING, None, False),
        (NEVER, None, True),
        (UNLOADED, None, True),
        (FAILED, None, False),  # Triton tried it when it started
        (NEVER, {}, True),
        (FAILED, {}, True),  # came back
        (FAILED, {"base": 1}, False),
        (FAILED, {"base": 0}, True),  # its model.json was mended
        (READY, {"base": 0}, False),  # a load would start its engine anew
        (LOADING, {"base": 0}, False),
        (NEVER, {"base": 1}, False),  # its load is on the way
    ],
)
def test_a_base_model_is_loaded_once(
    told: ModelState, tried: Mapping[str, int] | None, *, loads: bool
) -> None:
    assert to_load({"base": 1}, {"base": told}, tried) == (["base"] if loads else [])


def test_one_that_triton_has_not_seen_yet_is_loaded() -> None:
    assert to_load({"b": 1, "a": 1}, {}, {}) == ["a", "b"]


@dataclass(slots=True, kw_only=True)
class InMemoryRepository:
    """A Triton that loads at once, or when it may."""

    models: dict[str, ModelState] = field(default_factory=dict)
    refused: str | None = None
    is_up: bool = True
    may_load: threading.Event = field(default_factory=threading.Event)
    loads: list[str] = field(default_factory=list)

    def states(self) -> Mapping[str, ModelState]:
        if not self.is_up:
            raise TritonUnavailableError("Triton does not answer")
        return dict(self.models)

    def is_ready(self, model: str) -> bool:
        return self.models.get(model) == READY

    def load(self, model: str) -> None:
        self.loads.append(model)
        self.models[model] = LOADING
        self.may_load.wait(10)
        if self.refused is not None:
            self.models[model] = ModelState(state="UNAVAILABLE", reason=self.refused)
            raise TritonRefusedError(self.refused)
        self.models[model] = READY

    def unload(self, model: str) -> None:
        self.models[model] = UNLOADED


@pytest.fixture
def triton() -> InMemoryRepository:
    made = InMemoryRepository()
    made.may_load.set()
    return made


def write(repository: Path, name: str) -> Path:
    folder = repository / name
    (folder / "1").mkdir(parents=True, exist_ok=True)
    (folder / "1" / "model.json").write_text("{}")
    return folder


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_engine_that_starts_holds_up_no_look(tmp_path: Path, triton: InMemoryRepository) -> None:
    triton.may_load.clear()
    folders = [write(tmp_path, "a"), write(tmp_path, "b")]
    loader = BaseModelLoader(triton)
    loader.look(folders, [], [])
    wait_for(lambda: sorted(triton.loads) == ["a", "b"])
    loader.look(folders, [], [])
    triton.may_load.set()
    wait_for(lambda: triton.is_ready("a") and triton.is_ready("b"))
    loader.look(folders, [], [])
    assert sorted(triton.loads) == ["a", "b"]


def test_one_that_fails_is_told_and_left_alone_until_it_is_mended(
    tmp_path: Path, triton: InMemoryRepository, capsys: pytest.CaptureFixture[str]
) -> None:
    triton.refused = "no such model"
    folder = write(tmp_path, "a")
    loader = BaseModelLoader(triton)
    for _ in range(3):
        loader.look([folder], [], [])
        wait_for(lambda: triton.models["a"].state == "UNAVAILABLE")
    assert triton.loads == ["a"]
    wait_for(lambda: "no such model" in capsys.readouterr().out)
    triton.refused = None
    time.sleep(0.01)
    write(tmp_path, "a")
    loader.look([folder], [], [])
    wait_for(lambda: triton.is_ready("a"))


def test_one_that_is_gone_is_unloaded_with_what_belongs_to_it_and_may_come_back(
    tmp_path: Path, triton: InMemoryRepository
) -> None:
    of_a, of_b = ({n, f"{n}-adapters", f"{n}-adapter-files"} for n in "ab")
    triton.models = dict.fromkeys({*of_a, *of_b}, READY)
    loader = BaseModelLoader(triton)
    loader.look([write(tmp_path, "b")], ["a", "elsewhere"], ["b"])
    assert {triton.models[name] for name in of_a} == {UNLOADED}
    assert {triton.models[name] for name in of_b} == {READY}
    loader.look([write(tmp_path, "a"), tmp_path / "b"], [], ["b"])
    wait_for(lambda: triton.is_ready("a"))
    assert triton.loads == ["a"]


def test_adapters_that_outlived_their_base_model_are_unloaded_and_no_other_model(
    tmp_path: Path, triton: InMemoryRepository
) -> None:
    outlived = {"gone-adapters", "gone-adapter-files"}
    others = {"b-adapters", "b-adapter-files", "my-own-adapters"}
    triton.models = dict.fromkeys(outlived | others, READY)
    for companion in ("gone-adapters", "b-adapters"):
        (tmp_path / companion / "1").mkdir(parents=True)
        (tmp_path / companion / "1" / LORA_MAP_FILE).write_text("{}")
    (tmp_path / "my-own-adapters" / "1").mkdir(parents=True)
    with_adapters = base_models_with_adapters(tmp_path)
    BaseModelLoader(triton).look([write(tmp_path, "b")], [], with_adapters)
    assert {triton.models[name] for name in outlived} == {UNLOADED}
    assert {triton.models[name] for name in others} == {READY}


def test_what_came_while_triton_was_away_is_loaded_when_it_is_back(
    tmp_path: Path, triton: InMemoryRepository
) -> None:
    triton.is_up = False
    loader = BaseModelLoader(triton)
    with pytest.raises(TritonUnavailableError):
        loader.look([write(tmp_path, "a")], [], [])
    triton.is_up = True
    loader.look([tmp_path / "a"], [], [])
    wait_for(lambda: triton.is_ready("a"))
