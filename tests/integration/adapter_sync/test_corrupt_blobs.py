"""What is served is what was uploaded: a blob that has changed fails its adapter, and no other."""

import os
import threading

import pytest

from adapter_sync.blobs import BlobCorruptError
from adapter_sync.lora_map import read_lora_map
from adapter_sync.record import Adapter, AdapterStatus
from adapter_sync.scrub import Scrub
from tests.integration.adapter_sync.node import Node

WEIGHTS = b"the weights of an adapter"


def damage(node: Node, adapter: Adapter, *, unnoticed: bool = False) -> None:
    """Flip a bit of the weights in place; `unnoticed`, without a trace in the file's times."""
    file = node.blobs.path(adapter.revision.weights_blob)
    before = file.stat()
    file.chmod(0o600)
    with file.open("r+b") as opened:
        first = opened.read(1)
        opened.seek(0)
        opened.write(bytes([first[0] ^ 1]))
    if unnoticed:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def scrub(node: Node) -> Scrub:
    stopping = threading.Event()
    return Scrub(node.registry, node.blobs, node.staging, period_s=1, stopping=stopping)


def failure(node: Node, adapter: Adapter) -> tuple[AdapterStatus, str | None]:
    found = node.registry.adapter(node.tenant.id, adapter.id)
    return found.status, found.error_code


@pytest.mark.parametrize("unnoticed", [False, True])
def test_a_blob_that_changed_while_it_served_fails_its_adapter_and_no_other(
    node: Node, *, unnoticed: bool
) -> None:
    reconciler = node.start()
    bad, good = node.upload(WEIGHTS), node.upload()
    node.settle(reconciler)
    damage(node, bad, unnoticed=unnoticed)
    scrub(node).look()
    assert (failure(node, bad)[0] is AdapterStatus.READY) is unnoticed
    scrub(node).read_all()
    assert failure(node, bad) == (AdapterStatus.FAILED, "blob_corrupt")
    node.settle(reconciler)
    assert node.triton.served() == [good.lora_name]
    assert node.adapter_folders() == [good.lora_name]
    assert node.status(good) is AdapterStatus.READY


def test_a_blob_that_changed_before_it_was_linked_never_serves(node: Node) -> None:
    bad, good = node.upload(WEIGHTS), node.upload()
    damage(node, bad)
    node.settle(node.start())
    assert failure(node, bad) == (AdapterStatus.FAILED, "blob_corrupt")
    assert node.triton.served() == [good.lora_name]


@pytest.mark.parametrize("settled", [False, True])
def test_the_same_content_uploaded_again_heals_the_adapter(node: Node, *, settled: bool) -> None:
    reconciler = node.start()
    bad = node.upload(WEIGHTS)
    node.settle(reconciler)
    damage(node, bad)
    scrub(node).look()
    if settled:
        node.settle(reconciler)
    maps = set()
    node.triton.on_call = lambda: maps.add(read_lora_map(node.companion).adapters)
    healed = node.replace(bad, WEIGHTS)
    node.settle(reconciler)
    assert failure(node, bad) == (AdapterStatus.READY, None)
    # It was out of the map before it came again: under the same name the engine reads nothing anew.
    assert () in maps
    node.blobs.read(bad.revision.weights_blob)
    node.check(served=[healed])


def test_a_blob_is_read_again_only_when_its_file_has_changed(node: Node) -> None:
    adapter = node.upload(WEIGHTS)
    blob = adapter.revision.weights_blob
    assert node.blobs.is_verified(blob)
    damage(node, adapter, unnoticed=True)
    node.blobs.check(blob)
    os.utime(node.blobs.path(blob))
    with pytest.raises(BlobCorruptError):
        node.blobs.check(blob)


def test_whole_blobs_stay_and_nothing_fails(node: Node) -> None:
    adapters = [node.upload(), node.upload()]
    reconciler = node.start()
    node.settle(reconciler)
    os.utime(node.blobs.path(adapters[0].revision.weights_blob))
    for look in (scrub(node).look, scrub(node).read_all):
        look()
    node.settle(reconciler)
    node.check(served=adapters)
