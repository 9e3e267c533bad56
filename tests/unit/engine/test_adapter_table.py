"""The adapter table over a small engine that keeps what it was given, fails and takes its time."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from adapter_sync.lora_map import LoraMap, LoraMapEntry
from engine.adapter_table import AdapterState, AdapterTable, UnknownAdapterError

LOADED, ON_DISK = AdapterState.LOADED, AdapterState.ON_DISK
FAILED, DRAINING = AdapterState.FAILED, AdapterState.DRAINING


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraRequest:
    lora_name: str
    lora_int_id: int
    path: Path


@dataclass(slots=True, kw_only=True)
class SmallEngine:
    """What vLLM does with adapters: reads them from disk, and refuses with an exception."""

    loaded: dict[int, LoraRequest] = field(default_factory=dict)
    reads: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    """The reasons by lora_name."""
    may_add: asyncio.Event = field(default_factory=asyncio.Event)
    may_remove: asyncio.Event = field(default_factory=asyncio.Event)
    cannot_remove: bool = False

    async def add_lora(self, lora_request: LoraRequest) -> bool:
        await self.may_add.wait()
        assert lora_request.path.is_dir(), "vLLM would ask a hub"
        self.reads.append(lora_request.lora_name)
        self.loaded[lora_request.lora_int_id] = lora_request
        if lora_request.lora_name in self.refused:
            # A slot is taken all the same: measured with a tensor that is too wide.
            raise ValueError(self.refused[lora_request.lora_name])
        return True

    async def remove_lora(self, lora_id: int) -> bool:
        await self.may_remove.wait()
        if self.cannot_remove:
            raise RuntimeError("the engine is dead")
        return self.loaded.pop(lora_id, None) is not None

    def names(self) -> list[str]:
        return sorted(request.lora_name for request in self.loaded.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A table, its engine, vLLM's dictionary and the companion's folder."""

    table: AdapterTable[LoraRequest]
    engine: SmallEngine
    lora_requests: dict[str, LoraRequest]
    folder: Path

    def make(self, *names: str) -> None:
        for name in names:
            (self.folder / name).mkdir()

    async def apply(self, revision: int, *names: str) -> None:
        entries = tuple(LoraMapEntry(lora_name=name, folder=name, rank=8) for name in sorted(names))
        await self.table.apply(LoraMap(revision=revision, adapters=entries), self.folder)

    def states(self) -> dict[str, AdapterState]:
        return {name: each.state for name, each in self.table.status().adapters.items()}

    def reason(self, name: str) -> str | None:
        return self.table.status().adapters[name].reason

    def residencies(self) -> dict[str, str]:
        return {name: str(each.residency) for name, each in self.table.status().adapters.items()}

    def look(self, slots: int) -> None:
        """What the engine's owner does now and then: ask, and tell the table."""
        self.table.begin_looking()
        self.table.note_held(list(self.engine.loaded)[-slots:], list(self.engine.loaded))

    def consistent(self) -> bool:
        """Whether requests can only name what the engine has."""
        engine = {each.lora_name: each for each in self.engine.loaded.values()}
        return all(engine.get(name) == each for name, each in self.lora_requests.items())


def make_served(folder: Path, *, max_cpu_loras: int = 8) -> Served:
    engine = SmallEngine()
    engine.may_add.set()
    engine.may_remove.set()
    lora_requests: dict[str, LoraRequest] = {}
    table = AdapterTable(
        engine,
        lora_requests=lora_requests,
        make_request=lambda name, number, path: LoraRequest(
            lora_name=name, lora_int_id=number, path=path
        ),
        max_cpu_loras=max_cpu_loras,
    )
    return Served(table=table, engine=engine, lora_requests=lora_requests, folder=folder)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    made = make_served(tmp_path)
    made.make("a", "b", "c")
    return made


async def until(condition: Callable[[], object]) -> None:
    deadline = asyncio.get_running_loop().time() + 5
    while not condition():
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0)


async def hold(served: Served, name: str, release: asyncio.Event) -> None:
    """A request that uses an adapter until it is released."""
    async with served.table.lease(name):
        await release.wait()


async def test_a_map_is_applied(served: Served) -> None:
    await served.apply(3, "a", "b")
    assert served.table.status().revision == 3
    assert served.states() == {"a": LOADED, "b": LOADED}
    assert served.engine.names() == ["a", "b"]
    assert sorted(served.lora_requests) == ["a", "b"]
    assert sorted(served.engine.loaded) == [1, 2]
    assert served.lora_requests["a"].path == (served.folder / "a").resolve()


async def test_what_the_map_drops_leaves_the_engine(served: Served) -> None:
    await served.apply(1, "a", "b")
    await served.apply(2, "b", "c")
    assert served.states() == {"b": LOADED, "c": LOADED}
    assert served.engine.names() == ["b", "c"]
    assert sorted(served.lora_requests) == ["b", "c"]


async def test_a_bad_adapter_does_not_block_the_others(served: Served) -> None:
    served.engine.refused["b"] = "rank 128 is above the limit"
    await served.apply(1, "a", "b", "c")
    assert served.states() == {"a": LOADED, "b": FAILED, "c": LOADED}
    assert served.reason("b") == "rank 128 is above the limit"
    assert sorted(served.lora_requests) == ["a", "c"]


async def test_an_adapter_that_cannot_be_removed_does_not_block_the_others(
    served: Served,
) -> None:
    await served.apply(1, "a", "b")
    served.engine.cannot_remove = True
    await served.apply(2, "c")
    assert served.states() == {"c": LOADED}
    assert sorted(served.lora_requests) == ["c"]


async def test_an_older_map_is_ignored(served: Served) -> None:
    await served.apply(5, "a")
    await served.apply(4, "b")
    assert served.table.status().revision == 5
    assert served.engine.names() == ["a"]


async def test_the_same_map_again_reads_nothing_again(served: Served) -> None:
    await served.apply(1, "a", "b")
    await served.apply(1, "a", "b")
    assert served.engine.reads == ["a", "b"]


async def test_an_identity_that_comes_back_is_a_new_one_to_the_engine(served: Served) -> None:
    await served.apply(1, "a")
    first = served.lora_requests["a"].lora_int_id
    await served.apply(2)
    await served.apply(3, "a")
    assert served.lora_requests["a"].lora_int_id != first


async def test_maps_that_arrive_at_once_are_applied_one_after_the_other(served: Served) -> None:
    served.engine.may_add.clear()
    first = asyncio.create_task(served.apply(1, "a"))
    second = asyncio.create_task(served.apply(2, "b"))
    await asyncio.sleep(0.01)
    served.engine.may_add.set()
    await asyncio.gather(first, second)
    assert served.states() == {"b": LOADED}
    assert served.engine.names() == ["b"]


async def test_an_adapter_that_was_never_in_a_map_is_refused(served: Served) -> None:
    await served.apply(1, "a")
    with pytest.raises(UnknownAdapterError, match="no adapter 'x'"):
        async with served.table.lease("x"):
            pytest.fail("leased")


async def test_a_failed_adapter_is_refused_with_the_engines_reason(served: Served) -> None:
    served.engine.refused["a"] = "a tensor is too wide"
    await served.apply(1, "a")
    with pytest.raises(UnknownAdapterError, match="a tensor is too wide"):
        async with served.table.lease("a"):
            pytest.fail("leased")
    assert served.engine.reads == ["a"]


async def test_a_refused_adapter_is_forgotten_by_the_engine_when_it_leaves_the_map(
    served: Served,
) -> None:
    served.engine.refused["a"] = "no"
    await served.apply(1, "a")
    await served.apply(2, "b")
    assert served.states() == {"b": LOADED}
    assert served.engine.names() == ["b"]


async def test_a_failed_adapter_is_tried_again_with_the_next_map(served: Served) -> None:
    served.engine.refused["a"] = "out of memory"
    await served.apply(1, "a")
    served.engine.refused.clear()
    await served.apply(2, "a", "b")
    assert served.states() == {"a": LOADED, "b": LOADED}
    assert served.reason("a") is None


async def test_an_adapter_without_a_folder_never_reaches_the_engine(served: Served) -> None:
    await served.apply(1, "a", "missing")
    assert served.states() == {"a": LOADED, "missing": FAILED}
    assert served.reason("missing") == "its folder is missing"
    assert served.engine.reads == ["a"]
    served.make("missing")
    await served.apply(2, "a", "missing")
    assert served.states() == {"a": LOADED, "missing": LOADED}


async def test_an_adapter_is_removed_after_its_last_request(served: Served) -> None:
    await served.apply(1, "a", "b")
    releases = [asyncio.Event(), asyncio.Event()]
    requests = [asyncio.create_task(hold(served, "a", release)) for release in releases]
    await asyncio.sleep(0)
    await served.apply(2, "b")
    assert served.states() == {"a": DRAINING, "b": LOADED}
    assert served.engine.names() == ["a", "b"]
    with pytest.raises(UnknownAdapterError):
        async with served.table.lease("a"):
            pytest.fail("leased while draining")
    releases[0].set()
    await requests[0]
    await asyncio.sleep(0.01)
    assert served.engine.names() == ["a", "b"]
    releases[1].set()
    await requests[1]
    await until(lambda: served.states() == {"b": LOADED})
    assert served.engine.names() == ["b"]
    assert sorted(served.lora_requests) == ["b"]


async def test_a_draining_adapter_that_is_admitted_again_stays(served: Served) -> None:
    await served.apply(1, "a")
    release = asyncio.Event()
    request = asyncio.create_task(hold(served, "a", release))
    await asyncio.sleep(0)
    await served.apply(2)
    await served.apply(3, "a")
    assert served.states() == {"a": LOADED}
    release.set()
    await request
    await asyncio.sleep(0.01)
    assert served.engine.reads == ["a"]
    async with served.table.lease("a"):
        assert served.engine.names() == ["a"]


async def test_an_adapter_admitted_again_while_it_is_being_removed_is_added_anew(
    served: Served,
) -> None:
    await served.apply(1, "a")
    release = asyncio.Event()
    request = asyncio.create_task(hold(served, "a", release))
    await asyncio.sleep(0)
    await served.apply(2)
    served.engine.may_remove.clear()
    release.set()
    await request
    await until(lambda: "a" not in served.lora_requests)
    again = asyncio.create_task(served.apply(3, "a"))
    await asyncio.sleep(0.01)
    served.engine.may_remove.set()
    await again
    assert served.states() == {"a": LOADED}
    assert served.engine.reads == ["a", "a"]
    async with served.table.lease("a"):
        assert served.consistent()


async def test_an_adapter_dropped_again_while_it_is_being_removed_goes_for_good(
    served: Served,
) -> None:
    await served.apply(1, "a")
    release = asyncio.Event()
    request = asyncio.create_task(hold(served, "a", release))
    await asyncio.sleep(0)
    await served.apply(2)
    served.engine.may_remove.clear()
    release.set()
    await request
    await until(lambda: "a" not in served.lora_requests)
    back_and_forth = [
        asyncio.create_task(served.apply(3, "a")),
        asyncio.create_task(served.apply(4)),
    ]
    await asyncio.sleep(0.01)
    served.engine.may_remove.set()
    await asyncio.gather(*back_and_forth)
    assert served.states() == {}
    assert served.engine.names() == []
    assert served.lora_requests == {}


async def test_a_draining_adapter_may_end_while_the_next_map_is_applied(served: Served) -> None:
    """What is to leave is listed before the first removal, and one of it may go by itself."""
    await served.apply(1, "a", "b")
    release = asyncio.Event()
    request = asyncio.create_task(hold(served, "b", release))
    await asyncio.sleep(0)
    await served.apply(2, "a")
    served.engine.may_remove.clear()
    third = asyncio.create_task(served.apply(3, "c"))
    await asyncio.sleep(0.01)
    release.set()
    await request
    served.engine.may_remove.set()
    await third
    await until(lambda: served.states() == {"c": LOADED})
    assert served.engine.names() == ["c"]


async def test_only_as_many_as_the_host_keeps_are_read_at_the_start(tmp_path: Path) -> None:
    served = make_served(tmp_path, max_cpu_loras=2)
    served.make("a", "b", "c", "d", "e")
    await served.apply(7, "a", "b", "c", "d")
    assert served.states() == {"a": LOADED, "b": LOADED, "c": ON_DISK, "d": ON_DISK}
    assert served.engine.reads == ["a", "b"]
    async with served.table.lease("d"):
        assert served.states()["d"] is LOADED
        assert served.consistent()
    await served.apply(8, "a", "b", "c", "d", "e")
    assert served.engine.reads == ["a", "b", "d", "e"], "the arriving one, not the one left on disk"
    assert served.states()["c"] is ON_DISK


async def test_an_adapter_refused_at_its_first_request_tells_why(tmp_path: Path) -> None:
    served = make_served(tmp_path, max_cpu_loras=1)
    served.make("a", "b")
    served.engine.refused["b"] = "its weights are gone"
    await served.apply(1, "a", "b")
    with pytest.raises(UnknownAdapterError, match="its weights are gone"):
        async with served.table.lease("b"):
            pytest.fail("leased")
    assert served.states() == {"a": LOADED, "b": FAILED}


async def test_first_requests_at_once_add_their_adapter_once(tmp_path: Path) -> None:
    served = make_served(tmp_path, max_cpu_loras=0)
    served.make("a")
    await served.apply(1, "a")
    served.engine.may_add.clear()
    release = asyncio.Event()
    requests = [asyncio.create_task(hold(served, "a", release)) for _ in range(5)]
    await asyncio.sleep(0.01)
    served.engine.may_add.set()
    await until(lambda: served.states() == {"a": LOADED})
    release.set()
    await asyncio.gather(*requests)
    assert served.engine.reads == ["a"]


async def test_a_map_that_drops_an_adapter_being_added_does_not_wait_for_it(tmp_path: Path) -> None:
    served = make_served(tmp_path, max_cpu_loras=0)
    served.make("a", "b")
    await served.apply(1, "a")
    served.engine.may_add.clear()
    request = asyncio.create_task(hold(served, "a", asyncio.Event()))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(30):
        await served.apply(2)
    assert served.states() == {"a": DRAINING}
    served.engine.may_add.set()
    with pytest.raises(UnknownAdapterError, match="being removed"):
        await request
    await until(lambda: served.states() == {})
    assert served.engine.names() == []
    assert served.lora_requests == {}


async def test_a_cancelled_request_gives_its_adapter_back(served: Served) -> None:
    await served.apply(1, "a")
    request = asyncio.create_task(hold(served, "a", asyncio.Event()))
    await asyncio.sleep(0)
    await served.apply(2)
    request.cancel()
    with suppress(asyncio.CancelledError):
        await request
    await until(lambda: served.states() == {})
    assert served.engine.names() == []


async def test_a_request_cancelled_at_its_very_end_still_lets_its_adapter_go(
    served: Served,
) -> None:
    """A removal that the request awaited would be cancelled with it."""
    await served.apply(1, "a")
    release = asyncio.Event()
    request = asyncio.create_task(hold(served, "a", release))
    await asyncio.sleep(0)
    await served.apply(2)
    served.engine.may_remove.clear()
    release.set()
    for _ in range(3):
        await asyncio.sleep(0)
        request.cancel()
    with suppress(asyncio.CancelledError):
        await request
    served.engine.may_remove.set()
    await until(lambda: served.states() == {})
    assert served.engine.names() == []


async def test_a_request_cancelled_while_its_adapter_is_added_leaves_it_to_the_next(
    tmp_path: Path,
) -> None:
    served = make_served(tmp_path, max_cpu_loras=0)
    served.make("a")
    await served.apply(1, "a")
    served.engine.may_add.clear()
    release = asyncio.Event()
    release.set()
    requests = [asyncio.create_task(hold(served, "a", release)) for _ in range(2)]
    await asyncio.sleep(0.01)
    requests[0].cancel()
    await asyncio.sleep(0.01)
    served.engine.may_add.set()
    await requests[1]
    assert requests[0].cancelled()
    assert served.states() == {"a": LOADED}
    assert served.engine.reads == ["a"]
    await served.apply(2)
    assert served.states() == {}
    assert served.engine.names() == []


async def test_the_table_knows_what_is_in_a_slot_in_the_cache_and_only_on_disk(
    served: Served,
) -> None:
    await served.apply(1, "a", "b", "c")
    assert served.residencies() == {"a": "gpu", "b": "gpu", "c": "gpu"}
    assert served.table.may_have_moved()
    del served.engine.loaded[1]
    served.look(1)
    assert served.residencies() == {"a": "disk", "b": "cpu", "c": "gpu"}
    assert not served.table.may_have_moved()


async def test_an_adapter_that_the_engine_evicted_is_added_again_before_its_next_request(
    served: Served,
) -> None:
    await served.apply(1, "a", "b")
    del served.engine.loaded[1]
    served.look(1)
    assert served.states() == {"a": ON_DISK, "b": LOADED}
    assert list(served.lora_requests) == ["b"]
    async with served.table.lease("a"):
        assert served.engine.reads == ["a", "b", "a"]
        assert served.consistent()
    assert served.residencies()["a"] == "gpu"


async def test_an_adapter_evicted_under_a_request_stays_the_requests(served: Served) -> None:
    await served.apply(1, "a")
    async with served.table.lease("a"):
        served.engine.loaded.clear()
        served.look(1)
        assert served.states() == {"a": LOADED}
        assert "a" in served.lora_requests


async def test_the_engine_is_asked_only_when_an_adapter_may_have_moved(served: Served) -> None:
    await served.apply(1, "a", "b")
    served.look(1)
    assert served.residencies() == {"a": "cpu", "b": "gpu"}
    async with served.table.lease("b"):
        assert not served.table.may_have_moved()
    assert not served.table.may_have_moved()
    async with served.table.lease("a"):
        served.look(1)
        assert served.table.may_have_moved()
    served.look(2)
    assert not served.table.may_have_moved()
    await served.apply(2, "b")
    assert served.table.may_have_moved()


async def test_an_answer_from_before_an_adapter_was_added_does_not_count_for_it(
    served: Served,
) -> None:
    await served.apply(1, "a")
    served.table.begin_looking()
    await served.apply(2, "a", "b")
    served.table.note_held([1], [1])
    assert served.residencies() == {"a": "gpu", "b": "gpu"}
    assert served.states() == {"a": LOADED, "b": LOADED}
    assert served.table.may_have_moved()


async def test_what_the_engine_keeps_of_a_removed_adapter_is_counted(served: Served) -> None:
    await served.apply(1, "a", "b")
    served.engine.cannot_remove = True
    await served.apply(2, "b")
    served.look(2)
    assert (served.residencies(), served.table.status().held) == ({"b": "gpu"}, 2)
    served.engine.loaded.pop(1)
    served.look(2)
    assert served.table.status().held == 1


async def test_an_adapters_id_means_the_content_that_serves(served: Served) -> None:
    served.make("adp_1@old", "adp_1@new", "adp_10@x")
    await served.apply(1, "adp_1@old", "adp_10@x")
    assert served.table.named("adp_1") == "adp_1@old"
    assert served.table.named("adp_10@x") == "adp_10@x"
    served.engine.may_add.clear()
    applying = asyncio.create_task(served.apply(2, "adp_1@old", "adp_1@new", "adp_10@x"))
    await asyncio.sleep(0)
    assert served.states()["adp_1@new"] is ON_DISK
    assert served.table.named("adp_1") == "adp_1@old"
    served.engine.may_add.set()
    await applying
    assert served.table.named("adp_1") == "adp_1@new"


async def test_a_content_that_the_engine_refused_is_not_meant_by_the_id(served: Served) -> None:
    served.make("adp_1@old", "adp_1@bad")
    await served.apply(1, "adp_1@old")
    served.engine.refused["adp_1@bad"] = "too wide"
    await served.apply(2, "adp_1@old", "adp_1@bad")
    assert served.states()["adp_1@bad"] is FAILED
    assert served.table.named("adp_1") == "adp_1@old"


@pytest.mark.parametrize("name", ["", "adp_", "adp_2", "adp_1@", "adp_1@other"])
async def test_a_name_that_is_nobodys_is_refused_without_telling_others(
    served: Served, name: str
) -> None:
    served.make("adp_1@old")
    await served.apply(1, "adp_1@old")
    with pytest.raises(UnknownAdapterError) as refused:
        served.table.named(name)
    assert "old" not in str(refused.value)
