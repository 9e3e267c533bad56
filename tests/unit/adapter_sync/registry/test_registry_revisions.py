"""An adapter's revisions: the newest one, the one that serves, and those kept to go back to."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from threading import Barrier

import pytest

from adapter_sync.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    LoraServerError,
    NoEarlierRevisionError,
    PreconditionFailedError,
    RevisionNotFoundError,
)
from adapter_sync.record import Adapter, AdapterStatus, Overwrite, Revision, Tenant
from adapter_sync.registry import Registry
from tests.desired import content_of

MakeRevision = Callable[..., Revision]
Put = Callable[..., Adapter]
LOADING, READY, FAILED = AdapterStatus.LOADING, AdapterStatus.READY, AdapterStatus.FAILED
ANY = frozenset({"*"})


@pytest.fixture
def put(registry: Registry, acme: Tenant, make_revision: MakeRevision) -> Put:
    """Uploads weights under a name, in place of what is there."""

    def upload(
        weights: str, *, name: str = "finance", if_match: frozenset[str] | None = None
    ) -> Adapter:
        return registry.create_adapter(
            tenant=acme,
            name=name,
            base_model="tiny",
            revision=make_revision(weights),
            overwrite=Overwrite(replace=True, if_match=if_match),
        )

    return upload


def report(registry: Registry, adapter: Adapter, status: AdapterStatus) -> bool:
    reason = "no" if status is FAILED else None
    return registry.set_adapter_status(
        adapter.id, adapter.revision.digest, status, error_code=reason, error_message=reason
    )


def numbers(registry: Registry, adapter: Adapter) -> list[int]:
    return [each.revision.number for each in registry.revisions(adapter.tenant_id, adapter.id)]


def serving(registry: Registry, adapter: Adapter) -> int | None:
    found = registry.adapter(adapter.tenant_id, adapter.id).serving
    return None if found is None else found.number


def test_replacing_what_is_not_there_creates_it(registry: Registry, put: Put) -> None:
    adapter = put("one")
    assert (adapter.revision.number, adapter.status, adapter.serving) == (1, LOADING, None)
    assert registry.adapters() == [adapter]


def test_a_replacement_is_the_next_revision_of_the_same_adapter(
    registry_url: str, put: Put
) -> None:
    first = put("one")
    second = put("two")
    assert (second.id, second.name, second.created_at) == (first.id, first.name, first.created_at)
    assert (second.revision.number, second.status) == (2, LOADING)
    assert second.updated_at > first.updated_at
    with closing(Registry.open(registry_url)) as other:
        assert other.adapters() == [second]


def test_without_being_told_to_replace_nothing_changes(
    registry: Registry, acme: Tenant, put: Put, make_revision: MakeRevision
) -> None:
    first = put("one")
    before = registry.change_counter()
    with pytest.raises(AdapterExistsError, match="replace=true"):
        registry.create_adapter(
            tenant=acme, name="finance", base_model="tiny", revision=make_revision("two")
        )
    assert registry.adapters() == [first]
    assert registry.change_counter() == before


def test_a_replacement_needs_no_room_in_the_tier(registry: Registry, put: Put) -> None:
    for number in range(20):
        put("one", name=f"a{number}")
    assert put("two", name="a0").revision.number == 2
    assert len(registry.adapters()) == 20


def test_the_last_ready_revision_serves_until_the_next_is_ready(
    registry: Registry, put: Put
) -> None:
    report(registry, first := put("one"), READY)
    ready = registry.adapter(first.tenant_id, first.id)
    assert ready.serving == ready.revision == first.revision
    second = put("two")
    assert (second.status, second.serving) == (LOADING, first.revision)
    report(registry, second, READY)
    assert registry.desired_adapters("tiny").adapters[0].serving == content_of(second.revision)


def test_when_the_next_revision_fails_the_last_one_serves_on(registry: Registry, put: Put) -> None:
    report(registry, first := put("one"), READY)
    report(registry, put("bad"), FAILED)
    failed = registry.adapter(first.tenant_id, first.id)
    assert (failed.status, failed.error_message, failed.serving) == (FAILED, "no", first.revision)
    mended = put("good")
    assert (mended.status, mended.error_code, mended.error_message) == (LOADING, None, None)
    assert mended.serving == first.revision
    report(registry, mended, READY)
    assert serving(registry, first) == 3


def test_a_serving_revision_that_fails_serves_no_more(registry: Registry, put: Put) -> None:
    report(registry, first := put("one"), READY)
    assert report(registry, first, FAILED)
    assert serving(registry, first) is None
    report(registry, put("two"), READY)
    report(registry, third := put("three"), FAILED)
    second = registry.revisions(first.tenant_id, first.id)[1].revision
    assert report(registry, replace(third, revision=second), FAILED)
    assert serving(registry, first) is None
    assert not report(registry, replace(third, revision=second), FAILED)


def test_the_same_content_again_is_ready_at_once(registry: Registry, put: Put) -> None:
    report(registry, first := put("one"), READY)
    again = put("one")
    assert (again.revision.number, again.status, again.lora_name) == (2, READY, first.lora_name)
    assert again.serving == again.revision
    assert again.etag != first.etag
    put("two")
    back = put("one")
    assert (back.revision.number, back.status, serving(registry, first)) == (4, READY, 4)


def test_the_same_content_as_one_that_loads_is_loading_too(registry: Registry, put: Put) -> None:
    put("one")
    again = put("one")
    assert (again.revision.number, again.status, again.serving) == (2, LOADING, None)
    report(registry, again, READY)
    assert serving(registry, again) == 2


def test_every_revision_has_another_etag_and_its_status_none(registry: Registry, put: Put) -> None:
    first = put("one")
    assert first.etag[0] == first.etag[-1] == '"'
    report(registry, first, READY)
    assert registry.adapter(first.tenant_id, first.id).etag == first.etag
    etags = [first.etag, *(put(weights).etag for weights in ("two", "two", "one"))]
    assert len(set(etags)) == 4
    registry.delete_adapter(first.tenant_id, first.id)
    assert put("one").etag not in etags


def test_a_write_happens_only_to_the_state_that_was_seen(registry: Registry, put: Put) -> None:
    first = put("one")
    second = put("two", if_match=frozenset({'"other"', first.etag}))
    before = registry.change_counter()
    outdated = frozenset({first.etag})
    with pytest.raises(PreconditionFailedError, match="Read the adapter again"):
        put("three", if_match=outdated)
    with pytest.raises(PreconditionFailedError):
        registry.roll_back_adapter(first.tenant_id, first.id, if_match=outdated)
    with pytest.raises(PreconditionFailedError):
        registry.delete_adapter(first.tenant_id, first.id, if_match=frozenset())
    assert registry.adapters() == [second]
    assert registry.change_counter() == before
    third = put("three", if_match=ANY)
    back = registry.roll_back_adapter(first.tenant_id, first.id, if_match=frozenset({third.etag}))
    registry.delete_adapter(first.tenant_id, first.id, if_match=frozenset({back.etag}))
    assert registry.adapters() == []


def test_a_state_of_what_is_not_there_is_never_met(registry: Registry, put: Put) -> None:
    for if_match in (ANY, frozenset({'"x"'})):
        with pytest.raises(PreconditionFailedError):
            put("one", if_match=if_match)
    assert registry.adapters() == []


def test_a_wrong_state_is_said_before_the_name_is_taken(
    registry: Registry, acme: Tenant, put: Put, make_revision: MakeRevision
) -> None:
    first = put("one")
    for if_match, error in (
        (frozenset({'"x"'}), PreconditionFailedError),
        (frozenset({first.etag}), AdapterExistsError),
    ):
        with pytest.raises(error):
            registry.create_adapter(
                tenant=acme,
                name="finance",
                base_model="tiny",
                revision=make_revision("two"),
                overwrite=Overwrite(if_match=if_match),
            )


def race(writers: list[Callable[[], object]]) -> list[bool]:
    """All at the same time; whether each of them won."""
    barrier = Barrier(len(writers))

    def run(write: Callable[[], object]) -> bool:
        barrier.wait()
        try:
            write()
        except (PreconditionFailedError, AdapterNotFoundError):
            return False
        return True

    with ThreadPoolExecutor(len(writers)) as threads:
        return list(threads.map(run, writers))


def test_of_writers_that_saw_the_same_state_exactly_one_wins(registry: Registry, put: Put) -> None:
    put("one")
    for number in range(10):
        seen = put(f"seen {number}")
        replacing = partial(put, "new", if_match=frozenset({seen.etag}))
        rolling_back = partial(
            registry.roll_back_adapter, seen.tenant_id, seen.id, if_match=frozenset({seen.etag})
        )
        won = race([replacing, replacing, replacing, rolling_back, rolling_back])
        assert won.count(True) == 1
        newest = registry.adapter(seen.tenant_id, seen.id).revision.number
        assert newest == seen.revision.number + 1


def test_a_delete_and_a_replacement_of_the_same_state_never_both_win(
    registry: Registry, put: Put
) -> None:
    for number in range(10):
        seen = put(f"seen {number}", name=f"n{number}")
        if_match = frozenset({seen.etag})
        replacing = partial(put, "new", name=seen.name, if_match=if_match)
        deleting = partial(registry.delete_adapter, seen.tenant_id, seen.id, if_match=if_match)
        won = race([replacing, deleting])
        assert sorted(won) == [False, True]


def test_replacements_at_the_same_time_have_numbers_of_their_own(
    registry: Registry, put: Put
) -> None:
    first = put("one")
    made = race([partial(put, f"w{number}") for number in range(8)])
    assert all(made)
    assert numbers(registry, first) == list(range(9, 0, -1))


def test_revisions_are_listed_newest_first_with_the_one_that_serves(
    registry: Registry, put: Put
) -> None:
    report(registry, first := put("one"), READY)
    second = put("two")
    listed = registry.revisions(first.tenant_id, first.id)
    assert [each.revision for each in listed] == [second.revision, first.revision]
    assert [each.etag for each in listed] == [second.etag, first.etag]
    assert [each.serving for each in listed] == [False, True]
    assert [each.created_at for each in listed] == [second.updated_at, first.created_at]


def test_only_the_last_three_and_the_serving_revision_are_kept(
    registry: Registry, put: Put
) -> None:
    report(registry, first := put("one"), READY)
    old = put("two")
    for weights in ("three", "four"):
        put(weights)
        assert registry.prune_revisions(first.id) == []
    put("five")
    assert registry.prune_revisions(first.id) == [old.revision.weights_blob]
    assert numbers(registry, first) == [5, 4, 3, 1]
    assert registry.unused_blobs([old.revision.weights_blob]) == [old.revision.weights_blob]
    assert registry.unused_blobs([first.revision.weights_blob]) == []
    before = registry.change_counter()
    assert registry.prune_revisions(first.id) == registry.prune_revisions("adp_0") == []
    assert registry.change_counter() == before


def test_pruning_names_no_blob_that_anything_kept_uses(
    registry: Registry, put: Put, rival: Tenant, make_revision: MakeRevision
) -> None:
    first = put("one")
    registry.create_adapter(
        tenant=rival, name="theirs", base_model="tiny", revision=make_revision("two")
    )
    for weights in ("two", "three", "one", "four"):
        put(weights)
    assert registry.prune_revisions(first.id) == []
    assert numbers(registry, first) == [5, 4, 3]


def test_going_back_makes_a_new_revision_of_an_earlier_content(
    registry: Registry, put: Put
) -> None:
    report(registry, first := put("one"), READY)
    report(registry, second := put("two"), READY)
    back = registry.roll_back_adapter(first.tenant_id, first.id)
    assert back.revision == replace(first.revision, number=3)
    assert (back.status, back.serving) == (LOADING, second.revision)
    assert registry.adapter(first.tenant_id, first.id) == back
    forth = registry.roll_back_adapter(first.tenant_id, first.id, 2)
    assert forth.revision == replace(second.revision, number=4)
    assert (forth.status, forth.serving) == (READY, forth.revision)


def test_going_back_from_a_failed_revision_to_the_serving_one_is_ready_at_once(
    registry: Registry, put: Put
) -> None:
    report(registry, first := put("one"), READY)
    report(registry, put("bad"), FAILED)
    back = registry.roll_back_adapter(first.tenant_id, first.id)
    assert (back.status, back.error_message, back.lora_name) == (READY, None, first.lora_name)


@pytest.mark.parametrize("number", [0, -1, 1, 6, 10**30])
def test_a_revision_that_is_not_kept_is_not_found(
    registry: Registry, put: Put, number: int
) -> None:
    for weights in ("one", "two", "three", "four", "five"):
        adapter = put(weights)
    registry.prune_revisions(adapter.id)
    with pytest.raises(RevisionNotFoundError, match=r"kept are: 5, 4, 3\."):
        registry.roll_back_adapter(adapter.tenant_id, adapter.id, number)
    assert registry.adapters() == [adapter]


def test_a_first_revision_has_nothing_to_go_back_to(registry: Registry, put: Put) -> None:
    adapter = put("one")
    with pytest.raises(NoEarlierRevisionError, match="only its revision 1"):
        registry.roll_back_adapter(adapter.tenant_id, adapter.id)
    assert registry.adapters() == [adapter]


def test_another_tenant_s_revisions_are_not_found_in_the_same_words(
    registry: Registry, put: Put, rival: Tenant
) -> None:
    adapter = put("one")
    asks: list[Callable[[str], object]] = [
        lambda adapter_id: registry.revisions(rival.id, adapter_id),
        lambda adapter_id: registry.roll_back_adapter(rival.id, adapter_id, 1),
        lambda adapter_id: registry.roll_back_adapter(rival.id, adapter_id, if_match=ANY),
        lambda adapter_id: registry.delete_adapter(rival.id, adapter_id, if_match=frozenset()),
    ]
    for ask in asks:
        words = []
        for adapter_id in (adapter.id, "adp_0"):
            with pytest.raises(LoraServerError) as refusal:
                ask(adapter_id)
            assert isinstance(refusal.value, AdapterNotFoundError)
            words.append(str(refusal.value).replace(adapter_id, "…"))
        assert words[0] == words[1]


def test_a_deleted_adapter_takes_no_revision_and_leaves_none(registry: Registry, put: Put) -> None:
    report(registry, first := put("one"), READY)
    second = put("two")
    registry.delete_adapter(first.tenant_id, first.id)
    with pytest.raises(AdapterNotFoundError):
        registry.roll_back_adapter(first.tenant_id, first.id, 1)
    with pytest.raises(AdapterNotFoundError):
        registry.revisions(first.tenant_id, first.id)
    assert not report(registry, second, READY)
    assert put("three").id != first.id
    assert registry.forget_adapter(first.id) == sorted(
        [first.revision.weights_blob, second.revision.weights_blob]
    )
