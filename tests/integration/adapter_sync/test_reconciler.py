"""One base model's reconciler over a real registry, real blobs and real folders."""

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import pytest

from adapter_sync.engine_status import EngineAdapter
from adapter_sync.errors import AdapterNotFoundError, TransientError, TritonRefusedError
from adapter_sync.lora_map import LORA_MAP_FILE, companion_name, read_lora_map
from adapter_sync.record import Adapter, AdapterStatus, Residency
from adapter_sync.registry import Registry
from tests.integration.adapter_sync.node import BASE_MODEL, Node

COMPANION = companion_name(BASE_MODEL)
FEWEST_STEPS, MOST_STEPS = 15, 200
FILE_OPERATIONS = ("link", "rename", "replace", "unlink", "mkdir", "rmdir", "utime")


class Crash(BaseException):
    """The process ends here, as kill -9 ends it."""


class Crashes:
    """Counts the steps of a reconciler's work and ends it at the one that was chosen."""

    def __init__(self) -> None:
        self.armed = False
        self.at = self.steps = 0

    def step(self) -> None:
        if self.armed:
            self.steps += 1
            if self.steps == self.at:
                raise Crash

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **named: Any) -> Any:
            self.step()
            return function(*words, **named)

        return call

    @contextmanager
    def at_step(self, number: int) -> Iterator[None]:
        self.armed, self.at, self.steps = True, number, 0
        try:
            with suppress(Crash):
                yield
        finally:
            self.armed = False

    @property
    def happened(self) -> bool:
        return self.steps >= self.at


class CrashingRegistry:
    """A registry before each of whose calls the process may end."""

    def __init__(self, registry: Registry, crashes: Crashes) -> None:
        self._registry = registry
        self._crashes = crashes

    def __getattr__(self, name: str) -> Any:
        return self._crashes.before(getattr(self._registry, name))


@pytest.fixture
def crashes(monkeypatch: pytest.MonkeyPatch) -> Crashes:
    made = Crashes()
    for name in FILE_OPERATIONS:
        monkeypatch.setattr(os, name, made.before(getattr(os, name)))
    # It is the process that ends here, not the machine, and the disk is slow.
    monkeypatch.setattr(os, "fsync", made.before(lambda _: None))
    tidy = tempfile.TemporaryDirectory.__exit__

    def leave(self: Any, kind: Any, error: Any, traceback: Any) -> None:
        if kind is Crash:
            # Nobody tidies up after kill -9.
            self._finalizer.detach()
        else:
            tidy(self, kind, error, traceback)

    monkeypatch.setattr(tempfile.TemporaryDirectory, "__exit__", leave)
    return made


Scenario = Callable[[Node], tuple[list[Adapter], list[Adapter]]]
"""Changes something; what is to be served then, and what is to have failed."""


def uploads(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    return [node.upload(), node.upload()], []


def upload_of_known_content(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    return [node.upload(b"the neighbour's")], []


def refused_upload(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    refused = node.upload()
    node.triton.refused[refused.id] = "the shape does not fit"
    return [node.upload()], [refused]


def deletion(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    going = node.upload()
    node.settle(node.start())
    node.delete(going)
    return [], []


def replacement(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    going = node.upload(b"both have this content")
    node.settle(node.start())
    node.delete(going)
    return [node.upload(b"both have this content")], []


def new_revision(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    adapter = node.upload()
    node.settle(node.start())
    return [node.replace(adapter)], []


def two_new_revisions(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    adapter = node.upload()
    node.settle(node.start())
    node.replace(adapter)
    node.start().run_pass()
    return [node.replace(adapter)], []


def deletion_of_two_revisions(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    adapter = node.upload()
    node.settle(node.start())
    node.replace(adapter)
    node.start().run_pass()
    node.delete(adapter)
    return [], []


def lost_companion(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    shutil.rmtree(node.companion.parent)
    return [node.upload()], []


def lost_adapter_files(node: Node) -> tuple[list[Adapter], list[Adapter]]:
    shutil.rmtree(node.adapter_files.parent)
    return [node.upload()], []


@pytest.mark.parametrize(
    "scenario",
    [
        uploads,
        upload_of_known_content,
        refused_upload,
        deletion,
        replacement,
        new_revision,
        two_new_revisions,
        deletion_of_two_revisions,
        lost_companion,
        lost_adapter_files,
    ],
)
def test_a_crash_at_any_step_loses_nothing_and_leaves_nothing(
    node: Node, crashes: Crashes, scenario: Scenario
) -> None:
    neighbour = node.upload(b"the neighbour's")
    node.settle(node.start())
    node.triton.on_call = crashes.step
    fragile = cast("Registry", CrashingRegistry(node.registry, crashes))
    for number in itertools.count(1):
        assert number < MOST_STEPS
        served, failed = scenario(node)
        reconciler = node.start(fragile)
        with crashes.at_step(number):
            node.settle(reconciler)
        node.settle(node.start())
        node.check(served=[neighbour, *served], failed=failed)
        for adapter in (*served, *failed):
            node.delete(adapter)
        node.settle(node.start())
        node.check(served=[neighbour])
        if not crashes.happened:
            break
    assert number > FEWEST_STEPS


def test_an_upload_becomes_ready_in_one_pass(node: Node) -> None:
    adapter = node.upload()
    result = node.start().run_pass()
    assert result.changed
    assert not result.waiting
    node.check(served=[adapter])
    assert node.triton.loads == 1


def test_nothing_is_written_or_loaded_when_nothing_changed(node: Node) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    loads, counter = node.triton.loads, node.registry.change_counter()
    written = (node.companion / LORA_MAP_FILE).stat().st_mtime_ns
    node.settle(reconciler)
    node.settle(node.start())
    assert node.triton.loads == loads
    assert node.registry.change_counter() == counter
    assert (node.companion / LORA_MAP_FILE).stat().st_mtime_ns == written
    node.check(served=[adapter])


def test_a_companion_without_adapters_is_loaded_once(node: Node) -> None:
    reconciler = node.start()
    assert reconciler.run_pass().changed
    assert (node.companion / "model.py").is_file()
    result = reconciler.run_pass()
    assert not result.changed
    assert not result.waiting
    assert node.triton.loads == 1


def test_a_missing_blob_fails_its_adapter_and_no_other(node: Node) -> None:
    lost, kept = node.upload(), node.upload()
    node.blobs.path(lost.revision.weights_blob).unlink()
    node.settle(node.start())
    failed = node.registry.adapter(node.tenant.id, lost.id)
    assert failed.status is AdapterStatus.FAILED
    assert failed.error_code == "blob_missing"
    assert node.status(kept) is AdapterStatus.READY
    assert node.triton.served() == [kept.lora_name]
    assert node.staged_files() == []
    node.delete(lost)
    node.settle(node.start())
    node.check(served=[kept])


def test_a_refused_adapter_has_failed_with_the_engines_words_and_leaves_the_map(
    node: Node,
) -> None:
    good, bad = node.upload(), node.upload()
    node.triton.refused[bad.id] = "rank 128 is above 64"
    first = node.start().run_pass()
    assert first.waiting
    node.settle(node.start())
    failed = node.registry.adapter(node.tenant.id, bad.id)
    assert failed.error_code == "engine_refused"
    assert "rank 128 is above 64" in (failed.error_message or "")
    node.check(served=[good], failed=[bad])


def test_an_adapter_deleted_while_it_is_loaded_goes(node: Node) -> None:
    adapter = node.upload()
    deletions = [adapter]

    def delete_once() -> None:
        if deletions and node.companion.joinpath(LORA_MAP_FILE).exists():
            node.delete(deletions.pop())

    node.triton.on_call = delete_once
    reconciler = node.start()
    reconciler.run_pass()
    with pytest.raises(AdapterNotFoundError):
        node.status(adapter)
    node.settle(reconciler)
    node.check(served=[])


def test_an_adapter_deleted_before_anybody_looked_goes(node: Node) -> None:
    adapter = node.upload()
    node.delete(adapter)
    node.settle(node.start())
    assert node.rows() == []
    assert list(node.blobs.digests()) == []


def test_a_deleted_adapter_keeps_its_files_until_its_last_request_ends(node: Node) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    node.triton.in_use.add(adapter.lora_name)
    node.delete(adapter)
    for _ in range(3):
        result = reconciler.run_pass()
        assert result.waiting
        assert (node.adapter_files / adapter.lora_name / "adapter_model.safetensors").is_file()
        assert node.rows() == [adapter.id]
    node.triton.end_request(adapter.lora_name)
    node.settle(reconciler)
    node.check(served=[])


def test_while_triton_is_away_files_and_map_are_written_and_it_is_told_later(node: Node) -> None:
    adapter = node.upload()
    node.triton.is_up = False
    reconciler = node.start()
    with pytest.raises(TransientError, match="does not answer"):
        reconciler.run_pass()
    assert (node.adapter_files / adapter.lora_name).is_dir()
    assert [each.lora_name for each in read_lora_map(node.companion).adapters] == [
        adapter.lora_name
    ]
    assert node.status(adapter) is AdapterStatus.LOADING
    waiting = reconciler.run_pass()
    assert waiting.waiting
    assert not waiting.changed
    node.triton.restart(COMPANION)
    node.settle(reconciler)
    node.check(served=[adapter])
    assert read_lora_map(node.companion).revision == 1


def test_a_companion_that_was_never_loaded_is_loaded_although_the_map_is_written(
    node: Node,
) -> None:
    adapter = node.upload()
    node.triton.refuses_loads = True
    reconciler = node.start()
    for _ in range(2):
        with pytest.raises(TritonRefusedError, match="failed to load"):
            reconciler.run_pass()
    node.triton.refuses_loads = False
    node.settle(reconciler)
    node.check(served=[adapter])


def test_a_dead_companion_is_started_anew(node: Node) -> None:
    first = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    node.triton.companion_is_broken = True
    second = node.upload()
    node.settle(reconciler)
    node.check(served=[first, second])
    node.triton.companion_is_broken = True
    node.settle(reconciler)
    assert not node.triton.companion_is_broken
    node.check(served=[first, second])


def test_a_companion_that_stays_broken_is_not_loaded_again_and_again_at_once(node: Node) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)

    def break_it() -> None:
        node.triton.companion_is_broken = True

    node.triton.on_call = break_it
    with pytest.raises(TritonRefusedError, match="not healthy"):
        reconciler.run_pass()
    assert node.status(adapter) is AdapterStatus.READY


def test_what_a_restarted_triton_serves_needs_nothing(node: Node) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    revision = read_lora_map(node.companion).revision
    node.triton.restart(COMPANION)
    node.settle(reconciler)
    node.check(served=[adapter])
    assert read_lora_map(node.companion).revision == revision


def test_a_base_model_that_is_not_running_is_waited_for(node: Node) -> None:
    node.triton.base_is_up = False
    adapter = node.upload()
    reconciler = node.start()
    for _ in range(3):
        assert reconciler.run_pass().waiting
    assert node.status(adapter) is AdapterStatus.LOADING
    assert read_lora_map(node.companion).revision == 1
    node.triton.restart(COMPANION)
    node.settle(reconciler)
    node.check(served=[adapter])


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\0" * 50, b"{"],
    ids=["lost", "empty", "zeros", "half"],
)
def test_a_lost_or_broken_map_is_written_anew(node: Node, content: bytes | None) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    before = read_lora_map(node.companion).revision
    file = node.companion / LORA_MAP_FILE
    file.unlink() if content is None else file.write_bytes(content)
    node.settle(reconciler)
    node.check(served=[adapter])
    assert read_lora_map(node.companion).revision > before


def test_lost_adapter_files_are_put_back_though_the_engine_failed_to_find_them(node: Node) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    node.folder().remove(adapter.lora_name)
    node.triton.restart(COMPANION)
    assert node.triton.served() == []
    node.settle(reconciler)
    node.check(served=[adapter])


def test_a_folder_that_nobody_knows_is_cleared_away(node: Node) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    (node.adapter_files / "adp_unknown@0123").mkdir()
    node.settle(reconciler)
    node.check(served=[adapter])


def test_each_base_models_adapters_stay_its_own(node: Node) -> None:
    other = node.registry.base_model(BASE_MODEL)
    node.registry.put_base_model(
        type(other)(
            name="other",
            max_lora_rank=other.max_lora_rank,
            max_model_len=other.max_model_len,
            tensor_shapes=other.tensor_shapes,
        )
    )
    foreign = node.registry.create_adapter(
        tenant=node.tenant,
        name="foreign",
        base_model="other",
        revision=node.upload().revision,
    )
    node.settle(node.start())
    assert foreign.lora_name not in node.triton.engine
    assert node.status(foreign) is AdapterStatus.LOADING


def test_where_the_engine_has_an_adapter_is_in_the_registry(node: Node) -> None:
    reconciler = node.start()
    adapters = [node.upload() for _ in range(3)]
    residencies = [Residency.GPU, Residency.CPU, Residency.DISK]
    node.settle(reconciler)

    def found() -> list[Residency | None]:
        return [node.registry.adapter(node.tenant.id, each.id).residency for each in adapters]

    def move(*to: Residency) -> None:
        for adapter, residency in zip(adapters, to, strict=True):
            told = EngineAdapter(state="loaded", reason=None, residency=residency.value)
            node.triton.engine[adapter.lora_name] = told
        node.settle(reconciler)

    assert found() == [Residency.DISK] * 3
    move(*residencies)
    assert found() == residencies
    move(*reversed(residencies))
    assert found() == residencies[::-1]
    node.triton.is_up = False
    reconciler.run_pass()
    assert found() == [Residency.DISK] * 3
    assert reconciler.engine is None
