"""Creators at the same time, in threads of one process and in several processes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

import adapter_sync
from adapter_sync.errors import (
    AdapterExistsError,
    AdapterLimitError,
    InvalidApiKeyError,
    TenantExistsError,
    TenantNotFoundError,
)
from adapter_sync.record import Revision, Tenant
from adapter_sync.registry import Registry

# Opens the registry, waits for its start signal and then creates adapters of the names given,
# printing one letter for each: c(reated), e(xists) or l(imit).
CREATOR = """
import sys
from adapter_sync.errors import AdapterExistsError, AdapterLimitError
from adapter_sync.record import Revision
from adapter_sync.registry import Registry

registry = Registry.open(sys.argv[1])
tenant = registry.tenant("acme")
revision = Revision(
    number=1, digest="d" * 64, config_blob="c" * 64, weights_blob="b" * 64, size_bytes=1, rank=1,
    lora_alpha=1.0, target_modules=(), warnings=(),
)
print("ready", flush=True)
sys.stdin.readline()
for name in sys.argv[2:]:
    try:
        registry.create_adapter(tenant=tenant, name=name, base_model="tiny", revision=revision)
    except AdapterExistsError:
        print("e")
    except AdapterLimitError:
        print("l")
    else:
        print("c")
registry.close()
"""


def run_creators(url: str, names: Sequence[Sequence[str]]) -> list[str]:
    """Each process's letters; all begin to create at the same time."""
    root = Path(adapter_sync.__file__).parents[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CREATOR, url, *each],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for each in names
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60)[0].replace("\n", "") for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return answers


def test_of_processes_that_create_the_same_names_one_wins_each(
    registry: Registry, registry_url: str, acme: Tenant
) -> None:
    names = [f"a{number}" for number in range(15)]
    answers = run_creators(registry_url, [names] * 3)
    for outcomes in zip(*answers, strict=True):
        assert sorted(outcomes) == ["c", "e", "e"]
    assert {adapter.name for adapter in registry.adapters(acme.id)} == set(names)


def test_the_limit_holds_between_processes(
    registry: Registry, registry_url: str, acme: Tenant
) -> None:
    before = registry.change_counter()
    names = [[f"p{process}-{number}" for number in range(12)] for process in range(3)]
    answers = "".join(run_creators(registry_url, names))
    assert (answers.count("c"), answers.count("l")) == (20, 16)
    assert len(registry.adapters(acme.id)) == 20
    assert registry.change_counter() == before + 20


def test_the_limit_and_the_names_hold_between_threads(
    registry: Registry, acme: Tenant, make_revision: Callable[..., Revision]
) -> None:
    barrier = Barrier(8)

    def create(thread: int) -> str:
        barrier.wait()
        letters = ""
        for number in range(6):
            name = f"shared-{number}" if thread % 2 else f"t{thread}-{number}"
            try:
                registry.create_adapter(
                    tenant=acme, name=name, base_model="tiny", revision=make_revision()
                )
            except AdapterExistsError:
                letters += "e"
            except AdapterLimitError:
                letters += "l"
            else:
                letters += "c"
        return letters

    with ThreadPoolExecutor(8) as threads:
        letters = "".join(threads.map(create, range(8)))
    adapters = registry.adapters(acme.id)
    assert letters.count("c") == len(adapters) == 20
    assert len({adapter.name for adapter in adapters}) == 20


def test_of_threads_that_make_the_same_tenant_one_wins(registry: Registry) -> None:
    barrier = Barrier(6)

    def create(_: int) -> bool:
        barrier.wait()
        try:
            registry.create_tenant("acme", "shared")
        except TenantExistsError:
            return False
        return True

    with ThreadPoolExecutor(6) as threads:
        assert sorted(threads.map(create, range(6))) == [False] * 5 + [True]


def test_keys_are_looked_up_while_another_thread_writes(
    registry: Registry, acme: Tenant, make_revision: Callable[..., Revision]
) -> None:
    key = registry.create_key("acme")

    def write(_: int) -> None:
        for number in range(5):
            adapter = registry.create_adapter(
                tenant=acme, name=f"a{number}", base_model="tiny", revision=make_revision()
            )
            registry.delete_adapter(acme.id, adapter.id)
            registry.forget_adapter(adapter.id)

    def read(_: int) -> list[Tenant]:
        return [registry.caller(key).tenant for _ in range(50)]

    with ThreadPoolExecutor(8) as threads:
        writing = threads.submit(write, 0)
        reads = list(threads.map(read, range(6)))
        writing.result()
    assert all(tenant == acme for tenants in reads for tenant in tenants)


def test_keys_made_at_the_same_time_are_all_made(registry: Registry, acme: Tenant) -> None:
    barrier = Barrier(8)

    def create(_: int) -> list[str]:
        barrier.wait()
        return [registry.create_key("acme") for _ in range(10)]

    with ThreadPoolExecutor(8) as threads:
        keys = [key for made in threads.map(create, range(8)) for key in made]
    assert len(set(keys)) == 80
    assert all(registry.caller(key).tenant == acme for key in keys)


def test_the_audit_s_numbers_grow_in_the_order_of_the_changes(
    registry: Registry, registry_url: str, acme: Tenant
) -> None:
    names = [[f"p{process}-{number}" for number in range(6)] for process in range(3)]
    run_creators(registry_url, names)
    entries = registry.audit().items[::-1]
    assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.at for entry in entries] == sorted(entry.at for entry in entries)
    made = [entry.details["model"] for entry in entries if entry.action == "adapter.created"]
    adapters = sorted(registry.adapters(acme.id), key=lambda each: each.created_at)
    assert made == [each.requested_model for each in adapters]


def test_of_a_tenant_that_is_deleted_no_key_stays_valid_however_they_meet(
    registry: Registry,
) -> None:
    for number in range(5):
        name = f"short-lived-{number}"
        registry.create_tenant(name, "shared")
        barrier = Barrier(5)

        def issue(_: int, name: str = name, barrier: Barrier = barrier) -> str | None:
            barrier.wait()
            try:
                return registry.create_key(name)
            except TenantNotFoundError:
                return None

        with ThreadPoolExecutor(4) as threads:
            keys = threads.map(issue, range(4))
            barrier.wait()
            registry.delete_tenant(name)
            made = [key for key in keys if key is not None]
        for key in made:
            with pytest.raises(InvalidApiKeyError):
                registry.caller(key)
