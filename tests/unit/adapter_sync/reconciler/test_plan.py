"""The pure plan: single decisions, and the properties that hold whatever was found.

`World` behaves as the files, Triton, the companion and the engine do, without any of them.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from adapter_sync.engine_status import EngineAdapter, EngineStatus
from adapter_sync.lora_map import EMPTY_LORA_MAP, LoraMap, LoraMapEntry
from adapter_sync.reconciler import plan as planning
from adapter_sync.reconciler.plan import (
    SERVED,
    Cleanup,
    Current,
    Plan,
    Silence,
    StatusChange,
)
from adapter_sync.record import Adapter, AdapterStatus, Revision
from adapter_sync.registry.adapters import AdapterState, with_state
from adapter_sync.registry.revisions import with_revision
from tests.desired import content_of, desired_of

LOADING, READY = AdapterStatus.LOADING, AdapterStatus.READY
FAILED, DELETING = AdapterStatus.FAILED, AdapterStatus.DELETING
NOW = datetime(2026, 1, 1, tzinfo=UTC)
NUMBERS = range(4)
PASSES_TO_CONVERGE = 6


def make_adapter(number: int, status: AdapterStatus = LOADING) -> Adapter:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    revision = Revision(
        number=1,
        digest=digest,
        config_blob=digest,
        weights_blob=digest,
        size_bytes=1,
        rank=8,
        lora_alpha=8.0,
        target_modules=("q_proj",),
        warnings=(),
    )
    return Adapter(
        id=f"adp_{number}",
        tenant_id="ten_1",
        name=f"name-{number}",
        base_model="base",
        status=status,
        error_code=None,
        error_message=None,
        revision=revision,
        created_at=NOW,
        updated_at=NOW,
    )


A, B, C = (make_adapter(number) for number in range(3))


def served_of(*adapters: Adapter) -> tuple[planning.Served, ...]:
    return planning.in_order(planning.contents_served(desired_of(each)) for each in adapters)


def plan(adapters: Sequence[Adapter], current: Current) -> Plan:
    return planning.plan(served_of(*adapters), current)


def status_changes(
    adapters: Sequence[Adapter], engine: EngineStatus, revision: int = 1
) -> tuple[StatusChange, ...]:
    return planning.status_changes(served_of(*adapters), engine, revision)


def cleanup(adapters: Sequence[Adapter], current: Current) -> Cleanup:
    return planning.cleanup([desired_of(each) for each in adapters], current)


def installed(todo: Plan) -> list[str]:
    return [each.lora_name for each in todo.install]


def with_status(adapter: Adapter, status: AdapterStatus) -> Adapter:
    return dataclasses.replace(adapter, status=status)


def make_map(revision: int, *adapters: Adapter) -> LoraMap:
    entries = tuple(
        LoraMapEntry(lora_name=each.lora_name, folder=each.lora_name, rank=8, name=each.name)
        for each in sorted(adapters, key=lambda each: each.lora_name)
    )
    return LoraMap(revision=revision, adapters=entries)


def folders_of(*adapters: Adapter) -> frozenset[str]:
    return frozenset(adapter.lora_name for adapter in adapters)


def engine_with(
    revision: int | None, *adapters: Adapter, companion: int | None = None, state: str = "loaded"
) -> EngineStatus:
    return EngineStatus(
        companion_revision=companion if companion is not None else revision or 0,
        revision=revision,
        adapters={each.lora_name: EngineAdapter(state=state, reason=None) for each in adapters},
    )


def current(lora_map: LoraMap, folders: frozenset[str], engine: EngineStatus | Silence) -> Current:
    return Current(lora_map=lora_map, folders=folders, engine=engine)


def test_a_new_adapter_is_installed_mapped_and_committed() -> None:
    todo = plan([A], current(EMPTY_LORA_MAP, frozenset(), engine_with(0)))
    assert installed(todo) == [A.lora_name]
    assert todo.lora_map == make_map(1, A)
    assert todo.commit
    assert todo.revision == 1


def test_nothing_is_done_when_all_is_as_desired() -> None:
    desired = [with_status(A, READY), with_status(B, READY)]
    todo = plan(desired, current(make_map(4, A, B), folders_of(A, B), engine_with(4, A, B)))
    assert todo.install == ()
    assert todo.lora_map is None
    assert not todo.commit


@pytest.mark.parametrize("status", [FAILED, DELETING])
def test_an_adapter_that_is_not_to_be_served_leaves_the_map(status: AdapterStatus) -> None:
    desired = [with_status(A, status), with_status(B, READY)]
    todo = plan(desired, current(make_map(4, A, B), folders_of(A, B), engine_with(4, A, B)))
    assert todo.install == ()
    assert todo.lora_map == make_map(5, B)
    assert todo.commit


def test_a_crash_before_the_commit_is_made_up_for() -> None:
    todo = plan([A], current(make_map(5, A), folders_of(A), engine_with(4)))
    assert todo.lora_map is None
    assert todo.commit
    assert todo.revision == 5


def test_a_companion_that_triton_does_not_have_is_committed() -> None:
    """As after a crash before the very first commit: nothing else would ever load it."""
    todo = plan([A], current(make_map(1, A), folders_of(A), Silence.NOT_LOADED))
    assert todo.lora_map is None
    assert todo.commit


def test_a_companion_is_loaded_even_without_adapters() -> None:
    assert plan([], current(EMPTY_LORA_MAP, frozenset(), Silence.NOT_LOADED)).commit


def test_a_triton_that_is_away_is_not_called_without_need() -> None:
    todo = plan([A], current(make_map(1, A), folders_of(A), Silence.NO_TRITON))
    assert todo.lora_map is None
    assert not todo.commit


def test_files_are_prepared_while_triton_is_away() -> None:
    todo = plan([A], current(EMPTY_LORA_MAP, frozenset(), Silence.NO_TRITON))
    assert installed(todo) == [A.lora_name]
    assert todo.lora_map == make_map(1, A)


def test_a_lost_map_counts_on_from_what_the_engine_has() -> None:
    todo = plan([A], current(EMPTY_LORA_MAP, folders_of(A), engine_with(7, A)))
    assert todo.lora_map == make_map(8, A)


def test_a_lost_map_without_adapters_counts_on_too() -> None:
    todo = plan([], current(EMPTY_LORA_MAP, frozenset(), engine_with(7)))
    assert todo.lora_map == make_map(8)


def test_a_lost_map_counts_on_from_what_the_companion_has_while_the_base_is_away() -> None:
    todo = plan([A], current(EMPTY_LORA_MAP, folders_of(A), engine_with(None, companion=7)))
    assert todo.lora_map == make_map(8, A)


def test_lost_files_are_put_back_under_a_new_revision() -> None:
    """Triton must load the companion again, or the engine would not look for them again."""
    desired = [with_status(A, READY)]
    todo = plan(desired, current(make_map(4, A), frozenset(), engine_with(4, A, state="failed")))
    assert installed(todo) == [each.lora_name for each in desired]
    assert todo.lora_map == make_map(5, A)


def test_a_companion_whose_process_died_gets_a_new_revision() -> None:
    """Triton does nothing when it is told to load files that have not changed."""
    todo = plan([A], current(make_map(4, A), folders_of(A), Silence.BROKEN))
    assert todo.lora_map == make_map(5, A)
    assert todo.commit


def test_a_map_that_never_reached_the_engine_gets_a_new_revision() -> None:
    engine = engine_with(3, companion=4)
    todo = plan([A], current(make_map(4, A), folders_of(A), engine))
    assert todo.lora_map == make_map(5, A)


def test_a_base_model_that_is_not_running_is_waited_for() -> None:
    engine = engine_with(None, companion=4)
    todo = plan([A], current(make_map(4, A), folders_of(A), engine))
    assert todo.lora_map is None
    assert not todo.commit


@pytest.mark.parametrize("state", ["loaded", "on_disk"])
def test_what_the_engine_has_is_ready(state: str) -> None:
    (change,) = status_changes([A], engine_with(1, A, state=state))
    assert (change.adapter_id, change.digest) == (A.id, A.revision.digest)
    assert change.status is READY


@pytest.mark.parametrize("status", [LOADING, READY])
def test_what_the_engine_refused_has_failed_with_its_reason(status: AdapterStatus) -> None:
    engine = EngineStatus(
        companion_revision=1,
        revision=1,
        adapters={A.lora_name: EngineAdapter(state="failed", reason="rank 128 is too large")},
    )
    (change,) = status_changes([with_status(A, status)], engine)
    assert change.status is FAILED
    assert change.error_code == "engine_refused"
    assert "rank 128 is too large" in (change.error_message or "")


@pytest.mark.parametrize("status", [FAILED, DELETING])
def test_the_engine_has_no_say_in_what_is_not_served(status: AdapterStatus) -> None:
    for state in ("loaded", "failed"):
        assert status_changes([with_status(A, status)], engine_with(1, A, state=state)) == ()


def test_an_adapter_that_the_engine_does_not_know_yet_is_left_as_it_is() -> None:
    assert status_changes([A, with_status(B, READY)], engine_with(1)) == ()


def test_what_a_settled_map_leaves_out_is_on_the_disk() -> None:
    settled = dataclasses.replace(engine_with(5, B, state="failed"), settled_revision=5)
    ready, failed = status_changes([A, B], settled, revision=5)
    assert (ready.adapter_id, ready.status) == (A.id, READY)
    assert (failed.adapter_id, failed.status) == (B.id, FAILED)
    assert status_changes([A], settled, revision=6) == (), "it is of a map that is still to come"


def test_a_deleted_adapters_files_go_when_the_engine_has_let_go() -> None:
    desired = [with_status(A, DELETING)]
    before = cleanup(desired, current(make_map(5), folders_of(A), engine_with(5, A)))
    assert (before.folders, before.forget, before.waiting) == ((), (), True)
    after = cleanup(desired, current(make_map(5), folders_of(A), engine_with(5)))
    assert (after.folders, after.waiting) == ((A.lora_name,), False)
    assert list(after.forget) == [each.id for each in desired]


def test_nothing_goes_before_the_engine_has_the_current_map() -> None:
    desired = [with_status(A, DELETING)]
    for engine in (engine_with(4), engine_with(None), *Silence):
        rest = cleanup(desired, current(make_map(5), folders_of(A), engine))
        assert (rest.folders, rest.forget, rest.waiting) == ((), (), True)


def test_a_failed_adapters_files_go_and_its_row_stays() -> None:
    desired = [with_status(A, FAILED)]
    rest = cleanup(desired, current(make_map(5), folders_of(A), engine_with(5)))
    assert rest.folders == (A.lora_name,)
    assert rest.forget == ()
    assert not rest.waiting


def test_a_folder_that_nobody_knows_goes() -> None:
    rest = cleanup([], current(make_map(5), frozenset({"stray"}), engine_with(5)))
    assert rest.folders == ("stray",)


def make_revision(number: int, content: str) -> Revision:
    digest = hashlib.sha256(content.encode()).hexdigest()
    return dataclasses.replace(A.revision, number=number, digest=digest)


def replaced(
    adapter: Adapter, status: AdapterStatus = LOADING, serving: Revision | None = None
) -> Adapter:
    """The adapter with a second revision, the first one serving unless another does."""
    return dataclasses.replace(
        adapter,
        status=status,
        revision=make_revision(2, f"{adapter.id}, the second"),
        serving=serving or adapter.revision,
    )


NEW_A = replaced(A)


def test_while_a_replacement_loads_both_revisions_are_in_the_map() -> None:
    todo = plan([NEW_A], current(make_map(4, A), folders_of(A), engine_with(4, A)))
    assert installed(todo) == [NEW_A.lora_name]
    assert todo.lora_map == make_map(5, A, NEW_A)
    assert todo.commit


def test_the_old_revision_leaves_the_map_when_the_new_one_serves() -> None:
    desired = [replaced(A, READY, serving=NEW_A.revision)]
    both = folders_of(A, NEW_A)
    todo = plan(desired, current(make_map(5, A, NEW_A), both, engine_with(5, A, NEW_A)))
    assert todo.install == ()
    assert todo.lora_map == make_map(6, NEW_A)


def test_a_replacement_that_failed_leaves_the_map_and_the_old_revision_stays() -> None:
    desired = [replaced(A, FAILED)]
    both = folders_of(A, NEW_A)
    todo = plan(desired, current(make_map(5, A, NEW_A), both, engine_with(5, A, NEW_A)))
    assert todo.install == ()
    assert todo.lora_map == make_map(6, A)


def test_lost_files_of_the_serving_revision_are_put_back_while_the_next_one_loads() -> None:
    found = current(make_map(5, A, NEW_A), folders_of(NEW_A), engine_with(5, A, NEW_A))
    (lost,) = plan([NEW_A], found).install
    assert (lost.lora_name, lost.content) == (A.lora_name, content_of(A.revision))


def test_revisions_of_the_same_content_are_one_entry() -> None:
    again = dataclasses.replace(
        A, status=READY, revision=dataclasses.replace(A.revision, number=2), serving=A.revision
    )
    todo = plan([again], current(make_map(4, A), folders_of(A), engine_with(4, A)))
    assert (todo.install, todo.lora_map, todo.commit) == ((), None, False)
    assert status_changes([again], engine_with(4, A)) == ()


def test_a_serving_revision_that_the_engine_has_does_not_make_the_next_one_ready() -> None:
    assert status_changes([NEW_A], engine_with(4, A)) == ()
    (change,) = status_changes([NEW_A], engine_with(5, A, NEW_A))
    assert (change.adapter_id, change.digest) == (A.id, NEW_A.revision.digest)
    assert change.status is READY


@pytest.mark.parametrize("status", [LOADING, FAILED])
def test_a_serving_revision_that_the_engine_refuses_has_failed_whatever_the_newest_does(
    status: AdapterStatus,
) -> None:
    (change,) = status_changes([replaced(A, status)], engine_with(4, A, state="failed"))
    assert (change.adapter_id, change.digest) == (A.id, A.revision.digest)
    assert change.status is FAILED


def test_an_old_revisions_files_go_when_the_engine_has_let_go() -> None:
    desired = [replaced(A, READY, serving=NEW_A.revision)]
    both = folders_of(A, NEW_A)
    before = cleanup(desired, current(make_map(6, NEW_A), both, engine_with(6, A, NEW_A)))
    assert (before.folders, before.waiting) == ((), True)
    after = cleanup(desired, current(make_map(6, NEW_A), both, engine_with(6, NEW_A)))
    assert (after.folders, after.forget, after.waiting) == ((A.lora_name,), (), False)


def test_a_deleted_adapter_is_forgotten_only_without_files_of_any_revision() -> None:
    desired = [replaced(A, DELETING)]
    todo = plan(desired, current(make_map(5, A, NEW_A), folders_of(A, NEW_A), engine_with(5)))
    assert todo.lora_map == make_map(6)
    drains = current(make_map(6), folders_of(A, NEW_A), engine_with(6, A))
    before = cleanup(desired, drains)
    assert (before.folders, before.forget, before.waiting) == ((NEW_A.lora_name,), (), True)
    after = cleanup(desired, current(make_map(6), folders_of(A), engine_with(6)))
    assert list(after.forget) == [each.id for each in desired]


@dataclass(slots=True)
class World:
    """Files, Triton, companion and engine of one base model, and the registry's adapters."""

    adapters: dict[str, Adapter]
    refused: frozenset[str]
    in_use: set[str]
    folders: set[str]
    lora_map: LoraMap
    triton_is_up: bool
    base_is_up: bool
    companion_is_broken: bool
    companion_revision: int | None
    """None: Triton does not have the companion."""
    engine_revision: int
    engine: dict[str, str]
    """The engine's adapters and their states."""
    loaded_files: tuple[LoraMap, frozenset[str]] | None = None
    removed_in_use: list[str] = field(default_factory=list)

    def look(self) -> Current:
        return Current(
            lora_map=self.lora_map, folders=frozenset(self.folders), engine=self.status()
        )

    def status(self) -> EngineStatus | Silence:
        if not self.triton_is_up:
            return Silence.NO_TRITON
        if self.companion_revision is None:
            return Silence.NOT_LOADED
        if self.companion_is_broken:
            return Silence.BROKEN
        in_map = {entry.lora_name for entry in self.lora_map.adapters}
        if not self.base_is_up:
            return EngineStatus(
                companion_revision=self.companion_revision, revision=None, adapters={}
            )
        return EngineStatus(
            companion_revision=self.companion_revision,
            revision=self.engine_revision,
            settled_revision=self.engine_revision,
            adapters={
                name: EngineAdapter(state=state, reason=None)
                for name, state in self.engine.items()
                if state != "on_disk" or name not in in_map
            },
        )

    def files(self) -> tuple[LoraMap, frozenset[str]]:
        return self.lora_map, frozenset(self.folders)

    def load(self) -> None:
        """Triton's load: a no-op for files that it has loaded already."""
        if self.companion_revision is not None and self.loaded_files == self.files():
            return
        self.loaded_files = self.files()
        self.companion_revision = self.lora_map.revision
        self.companion_is_broken = False
        if self.base_is_up:
            self.take_over()

    def take_over(self) -> None:
        """The engine's table: older maps are ignored, adapters in use drain."""
        if self.lora_map.revision < self.engine_revision:
            return
        self.engine_revision = self.lora_map.revision
        names = {entry.lora_name for entry in self.lora_map.adapters}
        kept = {
            name: "draining" for name in self.engine if name in self.in_use and name not in names
        }
        self.engine = kept | {
            name: "failed" if name in self.refused or name not in self.folders else "loaded"
            for name in names
        }

    def run_pass(self) -> bool:
        """What the reconciler does; whether there was anything to do."""
        desired = sorted(self.adapters.values(), key=lambda adapter: adapter.id)
        before = self.look()
        todo = plan(desired, before)
        self.check_revision(before, todo.revision, written=todo.lora_map is not None)
        self.folders |= {adapter.lora_name for adapter in todo.install}
        self.lora_map = todo.lora_map or self.lora_map
        self.check_that_what_serves_stays(desired)
        assert {entry.lora_name for entry in self.lora_map.adapters} <= self.folders | {
            adapter.lora_name for adapter in desired if adapter.status not in SERVED
        }
        if todo.commit and self.triton_is_up:
            self.load()
        after = self.look()
        changes = (
            ()
            if isinstance(after.engine, Silence)
            else status_changes(desired, after.engine, self.lora_map.revision)
        )
        for change in changes:
            self.record(change)
        rest = cleanup(desired, after)
        self.clean(rest.folders)
        for adapter_id in rest.forget:
            assert self.adapters[adapter_id].lora_name not in self.folders
            del self.adapters[adapter_id]
        return bool(
            todo.install or todo.lora_map or todo.commit or changes or rest.folders
        ) or bool(rest.forget)

    def record(self, change: StatusChange) -> None:
        """What the registry makes of it."""
        known = self.adapters[change.adapter_id]
        state = AdapterState(status=change.status)
        self.adapters[known.id] = with_state(known, change.digest, state)

    def check_that_what_serves_stays(self, desired: list[Adapter]) -> None:
        serving = {
            adapter.lora_name_of(adapter.serving)
            for adapter in desired
            if adapter.serving is not None and adapter.status is not DELETING
        }
        assert serving <= {entry.lora_name for entry in self.lora_map.adapters}

    def check_revision(self, before: Current, revision: int, *, written: bool) -> None:
        seen = [before.lora_map.revision]
        if isinstance(before.engine, EngineStatus):
            seen += [before.engine.companion_revision, before.engine.revision or 0]
        assert revision >= max(seen)
        assert not written or revision > max(seen)

    def clean(self, folders: tuple[str, ...]) -> None:
        in_map = {entry.lora_name for entry in self.lora_map.adapters}
        assert not set(folders) & in_map, "the map still names it"
        assert not set(folders) & set(self.engine), "the engine still has it"
        self.folders -= set(folders)


def other_content(number: int) -> Revision:
    return make_revision(1, f"{number}, another content")


VARIANTS = [
    dataclasses.replace(make_adapter(number), revision=revision)
    for number in NUMBERS
    for revision in (make_adapter(number).revision, other_content(number))
]
NAMES = [adapter.lora_name for adapter in VARIANTS]
some_names = st.sets(st.sampled_from([*NAMES, "stray"]))


@st.composite
def some_adapters(draw: st.DrawFn, number: int) -> Adapter:
    """One as the registry may have it: what is ready serves, else perhaps another revision."""
    adapter = make_adapter(number, draw(st.sampled_from(AdapterStatus)))
    serving = draw(st.sampled_from([None, other_content(number)]))
    return dataclasses.replace(
        adapter, serving=adapter.revision if adapter.status is READY else serving
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    adapters = [draw(some_adapters(number)) for number in draw(st.sets(st.sampled_from(NUMBERS)))]
    in_map = [adapter for adapter in VARIANTS if draw(st.booleans())]
    engine = draw(
        st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["loaded", "on_disk", "failed"]))
    )
    return World(
        adapters={adapter.id: adapter for adapter in adapters},
        refused=frozenset(draw(st.sets(st.sampled_from(NAMES), max_size=1))),
        in_use=set(),
        folders=draw(some_names),
        lora_map=make_map(draw(st.integers(0, 3)), *in_map),
        triton_is_up=True,
        base_is_up=draw(st.booleans()),
        companion_is_broken=draw(st.booleans()),
        companion_revision=draw(st.none() | st.integers(0, 3)),
        engine_revision=draw(st.integers(0, 3)),
        engine=engine,
    )


def converge(world: World) -> None:
    for number in range(PASSES_TO_CONVERGE):
        if not world.run_pass():
            event(f"{number} passes")
            return
    raise AssertionError(f"still something to do: {world}")


def check_converged(world: World) -> None:
    served = {each.lora_name for each in served_of(*world.adapters.values())}
    assert {entry.lora_name for entry in world.lora_map.adapters} == served
    assert not any(each.status is LOADING for each in world.adapters.values())
    assert not any(each.status is DELETING for each in world.adapters.values())
    assert not served & world.refused
    assert world.folders == served
    assert set(world.engine) == served
    assert world.engine_revision == world.lora_map.revision


def start_base(world: World) -> None:
    """A base model that starts has an empty engine and reads the map itself."""
    world.base_is_up, world.engine_revision, world.engine = True, 0, {}
    world.take_over()


@settings(max_examples=150, deadline=None)
@given(worlds())
def test_whatever_is_found_a_few_passes_bring_it_to_rest(world: World) -> None:
    if not world.base_is_up:
        world.run_pass()
        start_base(world)
    converge(world)
    if world.adapters or world.companion_revision is not None:
        check_converged(world)


class Life(RuleBasedStateMachine):
    """Uploads, deletions, requests, failures and passes in any order; `World` checks each pass."""

    @initialize(world=worlds())
    def begin(self, world: World) -> None:
        self.world = world

    @rule()
    def reconcile(self) -> None:
        self.world.run_pass()

    @rule(number=st.sampled_from(NUMBERS))
    def upload(self, number: int) -> None:
        adapter = make_adapter(number)
        self.world.adapters.setdefault(adapter.id, adapter)

    @rule(variant=st.sampled_from(VARIANTS))
    def replace(self, variant: Adapter) -> None:
        known = self.world.adapters.get(variant.id)
        if known is not None and known.status is not DELETING:
            self.world.adapters[known.id] = with_revision(known, variant.revision)

    @rule(number=st.sampled_from(NUMBERS))
    def delete(self, number: int) -> None:
        if (known := self.world.adapters.get(make_adapter(number).id)) is not None:
            self.world.adapters[known.id] = with_status(known, DELETING)

    @rule(name=st.sampled_from(NAMES))
    def begin_request(self, name: str) -> None:
        if self.world.engine.get(name) == "loaded":
            self.world.in_use.add(name)

    @rule(name=st.sampled_from(NAMES))
    def end_request(self, name: str) -> None:
        self.world.in_use.discard(name)
        if self.world.engine.get(name) == "draining":
            del self.world.engine[name]

    @rule(names=some_names)
    def lose_files(self, names: set[str]) -> None:
        self.world.folders -= names

    @rule()
    def stop_triton(self) -> None:
        self.world.triton_is_up = self.world.base_is_up = False
        self.world.in_use.clear()
        self.world.engine.clear()

    @rule()
    def start_triton(self) -> None:
        self.world.triton_is_up = True
        self.world.companion_revision = self.world.lora_map.revision
        self.world.companion_is_broken = False
        self.world.loaded_files = self.world.files()
        start_base(self.world)

    @rule()
    def restart_base(self) -> None:
        self.world.in_use.clear()
        start_base(self.world)

    @rule()
    def kill_companion(self) -> None:
        self.world.companion_is_broken = self.world.companion_revision is not None

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for name in NAMES:
            self.end_request(name)
        if not self.world.triton_is_up:
            self.start_triton()
        if not self.world.base_is_up:
            start_base(self.world)
        converge(self.world)
        if self.world.adapters or self.world.companion_revision is not None:
            check_converged(self.world)


Life.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestLife = Life.TestCase
