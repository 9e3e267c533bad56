"""The reconcilers of all base models, as they run: found, woken, postponed and ended."""

import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy.exc import OperationalError

from adapter_sync.engine_status import EngineStatus
from adapter_sync.lora_map import companion_name
from adapter_sync.reconciler import Folders, loop, run_reconcilers
from adapter_sync.record import AdapterStatus
from adapter_sync.registry import Registry
from adapter_sync.triton_control import TritonControl
from tests.integration.adapter_sync.in_memory_triton import InMemoryTriton
from tests.integration.adapter_sync.node import (
    BASE_MODEL,
    Node,
    write_base_model,
    write_engine_arguments,
)

PATIENCE_S = 60


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHANGE_PERIOD_S", "WAITING_PERIOD_S", "BACKOFF_FIRST_S"):
        monkeypatch.setattr(loop, name, 0.02)
    for name in ("RESYNC_PERIOD_S", "BACKOFF_LAST_S"):
        monkeypatch.setattr(loop, name, 0.1)
    monkeypatch.setattr(loop, "STOP_PATIENCE_S", 0.5)


class Tritons:
    """One Triton with several companions; one of them may hang."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._companions = {companion_name(BASE_MODEL): node.triton}
        self.hanging: set[str] = set()
        self.may_go_on = threading.Event()

    def of(self, base_model: str) -> InMemoryTriton:
        triton = InMemoryTriton(repository=self._node.repository)
        return self._companions.setdefault(companion_name(base_model), triton)

    def commit(self, companion: str, revision: int) -> None:
        self._hang(companion)
        self._companions[companion].commit(companion, revision)

    def status(self, companion: str) -> EngineStatus | None:
        self._hang(companion)
        return self._companions[companion].status(companion)

    def _hang(self, companion: str) -> None:
        if companion in self.hanging:
            self.may_go_on.wait(60)


@contextmanager
def running(
    node: Node, control: TritonControl, registry: Registry | None = None
) -> Iterator[threading.Thread]:
    stopping = threading.Event()
    thread = threading.Thread(
        target=run_reconcilers,
        kwargs={
            "node": node.this,
            "registry": registry or node.registry,
            "blobs": node.blobs,
            "folders": Folders(
                repository=node.repository,
                staging=node.staging,
                models=node.staging.parent / "models",
            ),
            "control": control,
            "loader": None,
            "stopping": stopping,
        },
    )
    thread.start()
    try:
        yield thread
    finally:
        stopping.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_ready(node: Node, adapter_id: str) -> bool:
    return node.registry.adapter(node.tenant.id, adapter_id).status is AdapterStatus.READY


@pytest.fixture
def tritons(node: Node) -> Iterator[Tritons]:
    made = Tritons(node)
    yield made
    made.may_go_on.set()


def test_a_base_model_is_found_and_its_adapters_come_and_go(node: Node, tritons: Tritons) -> None:
    write_base_model(node, BASE_MODEL)
    node.registry.remove_base_model(BASE_MODEL)
    with running(node, tritons):
        wait_for(lambda: [base.name for base in node.registry.base_models()] == [BASE_MODEL])
        adapter = node.upload()
        wait_for(lambda: is_ready(node, adapter.id))
        node.check(served=[adapter])
        node.delete(adapter)
        wait_for(lambda: not node.rows() and not list(node.blobs.digests()))
        node.check(served=[])
    assert BASE_MODEL not in [thread.name for thread in threading.enumerate()]


def test_a_change_is_seen_at_once(
    node: Node, tritons: Tritons, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHANGE_PERIOD_S", "RESYNC_PERIOD_S"):
        monkeypatch.setattr(loop, name, 10 * PATIENCE_S)
    write_base_model(node, BASE_MODEL)
    with running(node, tritons):
        wait_for(lambda: node.triton.companion_revision is not None)
        adapter = node.upload()
        wait_for(lambda: is_ready(node, adapter.id))


def test_a_base_model_added_later_is_found(node: Node, tritons: Tritons) -> None:
    with running(node, tritons):
        write_base_model(node, "later")
        tritons.of("later")
        wait_for(lambda: "later" in [base.name for base in node.registry.base_models()])
        wait_for((node.repository / "later-adapters" / "config.pbtxt").is_file)


def test_a_base_model_without_adapters_is_registered_and_gets_no_companion(
    node: Node, tritons: Tritons
) -> None:
    embedder = write_base_model(node, "embedder")
    (node.staging.parent / "models" / "embedder" / "model.safetensors").unlink()
    write_engine_arguments(embedder, runner="pooling")
    write_base_model(node, BASE_MODEL)
    with running(node, tritons):
        adapter = node.upload()
        wait_for(lambda: is_ready(node, adapter.id))
        time.sleep(0.3)
    assert not node.registry.base_model("embedder").takes_adapters
    assert node.registry.base_model(BASE_MODEL).takes_adapters
    assert not (node.repository / companion_name("embedder")).exists()


def test_a_base_model_that_takes_adapters_no_more_is_let_be_until_it_does_again(
    node: Node, tritons: Tritons
) -> None:
    folder = write_base_model(node, BASE_MODEL)
    with running(node, tritons):
        wait_for(node.companion.is_dir)
        write_engine_arguments(folder, enable_lora=False)
        wait_for(lambda: not node.registry.base_model(BASE_MODEL).takes_adapters)
        time.sleep(0.3)
        shutil.rmtree(node.companion.parent)
        time.sleep(0.4)
        assert not node.companion.parent.exists()
        write_engine_arguments(folder, enable_lora=True)
        wait_for(node.companion.is_dir)


def test_a_base_model_whose_triton_hangs_holds_up_no_other(node: Node, tritons: Tritons) -> None:
    for name in ("hanging", BASE_MODEL):
        write_base_model(node, name)
        tritons.of(name)
    tritons.hanging.add(companion_name("hanging"))
    with running(node, tritons):
        adapter = node.upload()
        wait_for(lambda: is_ready(node, adapter.id))


def test_the_end_does_not_wait_for_a_triton_that_hangs(node: Node, tritons: Tritons) -> None:
    write_base_model(node, BASE_MODEL)
    tritons.hanging.add(companion_name(BASE_MODEL))
    with running(node, tritons):
        wait_for(node.companion.is_dir)
        begin = time.monotonic()
    assert time.monotonic() - begin < 20


def test_an_unreadable_base_model_holds_up_no_other_and_is_read_once_it_is_mended(
    node: Node, tritons: Tritons
) -> None:
    broken = write_base_model(node, "broken")
    write_base_model(node, BASE_MODEL)
    tritons.of("broken")
    (broken / "1" / "model.json").write_text("{")
    with running(node, tritons):
        adapter = node.upload()
        wait_for(lambda: is_ready(node, adapter.id))
        (broken / "1" / "model.json").write_text(json.dumps({"model": "broken"}))
        wait_for(lambda: "broken" in [base.name for base in node.registry.base_models()])


def test_a_base_model_that_was_removed_is_let_be_and_served_again_when_it_returns(
    node: Node, tritons: Tritons
) -> None:
    folder = write_base_model(node, BASE_MODEL)
    with running(node, tritons):
        adapter = node.upload()
        wait_for(lambda: is_ready(node, adapter.id))
        folder.rename(node.staging / "away")
        wait_for(lambda: not node.registry.base_models())
        time.sleep(0.3)
        shutil.rmtree(node.companion.parent)
        time.sleep(0.4)
        assert not node.companion.parent.exists()
        (node.staging / "away").rename(folder)
        wait_for((node.adapter_files / adapter.lora_name).is_dir)
        wait_for(lambda: node.triton.served() == [adapter.lora_name])


def test_a_triton_that_comes_late_is_told_what_was_missed(node: Node, tritons: Tritons) -> None:
    write_base_model(node, BASE_MODEL)
    node.triton.is_up = False
    with running(node, tritons):
        adapter = node.upload()
        wait_for((node.adapter_files / adapter.lora_name).is_dir)
        time.sleep(0.2)
        assert not is_ready(node, adapter.id)
        node.triton.is_up = True
        wait_for(lambda: is_ready(node, adapter.id))


class FailingRegistry:
    """A registry whose database can't be asked for a while."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.fails = False
        self.failures = 0

    def __getattr__(self, name: str) -> Any:
        if self.fails:
            self.failures += 1
            raise OperationalError("SELECT", {}, Exception("disk I/O error"))
        return getattr(self._registry, name)


def test_a_registry_that_fails_for_a_while_ends_nothing(node: Node, tritons: Tritons) -> None:
    write_base_model(node, BASE_MODEL)
    failing = FailingRegistry(node.registry)
    with running(node, tritons, cast("Registry", failing)):
        wait_for(node.companion.is_dir)
        failing.fails = True
        wait_for(lambda: failing.failures > 20)
        failing.fails = False
        adapter = node.upload()
        wait_for(lambda: is_ready(node, adapter.id))


def test_what_a_killed_process_left_in_staging_is_cleared(node: Node, tritons: Tritons) -> None:
    write_base_model(node, BASE_MODEL)
    left = node.staging / companion_name(BASE_MODEL) / "tmp1234" / "adp_1@00"
    left.mkdir(parents=True)
    (left / "adapter_config.json").write_text("{}")
    with running(node, tritons):
        wait_for(node.companion.is_dir)
        wait_for(lambda: not node.staged_files())


def test_the_node_tells_its_base_models_and_the_map_that_its_engine_has(node: Node) -> None:
    write_base_model(node, BASE_MODEL)
    adapter = node.upload()
    began = datetime.now(UTC)

    def told() -> int | None:
        [found] = node.registry.nodes()
        return found.base_models[0].lora_map_revision if found.base_models else None

    with running(node, node.triton):
        wait_for(lambda: node.status(adapter) is AdapterStatus.READY)
        wait_for(lambda: told() == 1)
    [found] = node.registry.nodes()
    assert (found.id, found.host) == (node.this.id, socket.gethostname())
    assert found.heartbeat_at > began
    [base] = found.base_models
    assert (base.name, base.max_model_len, base.max_lora_rank) == (BASE_MODEL, 64, 8)


def test_a_base_model_that_another_node_serves_stays_until_that_is_lost(node: Node) -> None:
    write_base_model(node, BASE_MODEL)
    elsewhere = replace(node.registry.base_model(BASE_MODEL), name="elsewhere")
    node.registry.put_base_model(elsewhere)
    other = replace(node.this, id="nod_0").announcement([elsewhere], {})
    node.registry.announce_node(other)
    began = datetime.now(UTC)

    def names() -> list[str]:
        return [base.name for base in node.registry.base_models()]

    def heartbeats() -> list[datetime]:
        return [each.heartbeat_at for each in node.registry.nodes() if each.id == node.this.id]

    with running(node, node.triton):
        wait_for(lambda: max(heartbeats()) > began)
        assert names() == ["elsewhere", BASE_MODEL]
        node.registry.announce_node(replace(other, heartbeat_at=began - timedelta(minutes=1)))
        wait_for(lambda: names() == [BASE_MODEL])
