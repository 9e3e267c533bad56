"""New revisions on their way into the engine, while the earlier ones serve."""

import pytest

from adapter_sync.lora_map import companion_name, read_lora_map
from adapter_sync.record import AdapterStatus
from tests.integration.adapter_sync.node import BASE_MODEL, Node

COMPANION = companion_name(BASE_MODEL)


def test_a_new_revision_takes_over_and_the_old_one_goes(node: Node) -> None:
    old = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    new = node.replace(old)
    node.settle(reconciler)
    node.check(served=[new])
    assert len(node.registry.revisions(node.tenant.id, new.id)) == 2


def test_whatever_serves_is_in_the_engine_at_every_moment(node: Node) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    seen = []

    def check() -> None:
        seen.append(node.serving(adapter))
        assert seen[-1] in node.triton.served()

    node.triton.on_call = check
    names = [adapter.lora_name]
    for _ in range(3):
        names.append(node.replace(adapter).lora_name)
        check()
        node.settle(reconciler)
        check()
    assert list(dict.fromkeys(seen)) == names


def test_both_revisions_are_in_the_engine_until_the_new_one_serves(node: Node) -> None:
    old = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    new = node.replace(old)
    reconciler.run_pass()
    assert node.triton.served() == sorted([old.lora_name, new.lora_name])
    assert node.serving(old) == new.lora_name
    reconciler.run_pass()
    assert node.triton.served() == [new.lora_name]


def test_an_old_revision_keeps_its_files_until_its_last_request_ends(node: Node) -> None:
    old = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    node.triton.in_use.add(old.lora_name)
    new = node.replace(old)
    for _ in range(4):
        result = reconciler.run_pass()
    assert result.waiting
    assert node.status(new) is AdapterStatus.READY
    assert (node.adapter_files / old.lora_name / "adapter_model.safetensors").is_file()
    node.triton.end_request(old.lora_name)
    node.settle(reconciler)
    node.check(served=[new])


def test_a_deleted_adapter_waits_for_the_last_request_of_any_revision(node: Node) -> None:
    old = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    node.triton.in_use.add(old.lora_name)
    new = node.replace(old)
    for _ in range(3):
        reconciler.run_pass()
    node.delete(new)
    for _ in range(3):
        assert reconciler.run_pass().waiting
    assert node.rows() == [new.id]
    assert node.triton.served() == []
    node.triton.end_request(old.lora_name)
    node.settle(reconciler)
    node.check(served=[])


def test_when_a_new_revision_is_refused_the_old_one_serves_and_a_later_one_mends_it(
    node: Node,
) -> None:
    old = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    bad = node.replace(old)
    node.triton.refused[bad.lora_name] = "the shape does not fit"
    node.settle(reconciler)
    failed = node.registry.adapter(node.tenant.id, old.id)
    assert (failed.status, failed.error_code) == (AdapterStatus.FAILED, "engine_refused")
    assert node.serving(old) == old.lora_name
    assert node.triton.served() == sorted(node.triton.engine) == [old.lora_name]
    assert node.folder().adapter_folders() == {old.lora_name}
    good = node.replace(old)
    node.settle(reconciler)
    node.check(served=[good])


def test_the_old_revision_serves_on_after_a_restart_though_the_newest_failed(node: Node) -> None:
    old = node.upload()
    node.settle(node.start())
    bad = node.replace(old)
    node.triton.refused[bad.lora_name] = "the shape does not fit"
    node.settle(node.start())
    node.triton.restart(COMPANION)
    node.settle(node.start())
    assert node.triton.served() == [old.lora_name]
    assert (node.status(old), node.serving(old)) == (AdapterStatus.FAILED, old.lora_name)


def test_a_new_revision_whose_file_is_lost_leaves_the_old_one_serving(node: Node) -> None:
    old = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    lost = node.replace(old)
    node.blobs.path(lost.revision.weights_blob).unlink()
    node.settle(reconciler)
    assert (node.status(old), node.serving(old)) == (AdapterStatus.FAILED, old.lora_name)
    assert node.triton.served() == [old.lora_name]
    assert node.staged_files() == []


def test_a_serving_revision_that_the_engine_loses_serves_no_more(node: Node) -> None:
    old = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    bad = node.replace(old)
    node.triton.refused[old.id] = "no room"
    node.settle(reconciler)
    assert (node.status(bad), node.serving(bad)) == (AdapterStatus.FAILED, None)
    assert read_lora_map(node.companion).adapters == ()
    assert node.folder().adapter_folders() == frozenset()


def test_the_same_content_again_changes_nothing_in_the_engine(node: Node) -> None:
    first = node.upload(b"this content")
    reconciler = node.start()
    node.settle(reconciler)
    loads, revision = node.triton.loads, read_lora_map(node.companion).revision
    again = node.replace(first, b"this content")
    assert (again.status, again.revision.number) == (AdapterStatus.READY, 2)
    node.settle(reconciler)
    node.check(served=[again])
    assert (node.triton.loads, read_lora_map(node.companion).revision) == (loads, revision)


@pytest.mark.parametrize("settled", [True, False])
def test_going_back_serves_the_earlier_content(node: Node, *, settled: bool) -> None:
    first = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    node.replace(first)
    if settled:
        node.settle(reconciler)
    back = node.registry.roll_back_adapter(node.tenant.id, first.id)
    node.settle(reconciler)
    assert back.lora_name == first.lora_name
    node.check(served=[back])


def test_revisions_that_are_too_old_leave_no_file_and_no_blob(node: Node) -> None:
    adapter = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    for _ in range(5):
        adapter = node.replace(adapter)
        node.settle(reconciler)
    node.check(served=[adapter])
    kept = node.registry.revisions(node.tenant.id, adapter.id)
    assert [each.revision.number for each in kept] == [6, 5, 4]
    node.delete(adapter)
    node.settle(reconciler)
    node.check(served=[])


def test_the_serving_revision_is_installed_anew_however_old_it_is(node: Node) -> None:
    first = node.upload()
    reconciler = node.start()
    node.settle(reconciler)
    for _ in range(4):
        bad = node.replace(first)
        node.triton.refused[bad.lora_name] = "no"
        node.settle(reconciler)
    node.folder().remove(first.lora_name)
    node.settle(reconciler)
    assert node.triton.served() == [first.lora_name]
    kept = node.registry.revisions(node.tenant.id, first.id)
    assert [each.revision.number for each in kept] == [5, 4, 3, 1]
