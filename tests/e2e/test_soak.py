"""Several tenants do everything at random at once: nothing wrong is answered, nothing is left.

SOAK_SECONDS (30 for each of the two tests without it) and SOAK_SEED set how long it runs and what
it does: see docs/testing.md. A failure tells its seed.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator

import pytest
from transformers import PreTrainedModel

from adapter_sync.registry import Registry
from tests.e2e.conftest import make_random_adapter
from tests.e2e.soak.contents import Content, read_content
from tests.e2e.soak.leftovers import leftovers
from tests.e2e.soak.run import client, keep_killing, learn_answers, soak
from tests.e2e.soak.tenant import Tenant, World, repo_of
from tests.hub_server import Hub, Repo
from tests.stack_process import Stack, is_ready, wait_for

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
TENANTS = 3
RANKS = (1, 2, 4, 8, 16, 16, 8, 4)


@pytest.fixture(scope="module")
def contents(
    base_model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> list[Content]:
    """Adapters of the soak's own, told apart by their lora_alpha; their answers are not known."""
    folder = tmp_path_factory.mktemp("soak")
    return [
        read_content(
            make_random_adapter(
                base_model,
                folder / f"content-{number}",
                seed=100 + number,
                rank=rank,
                lora_alpha=2 * rank + number,
            ),
            2 * rank + number,
        )
        for number, rank in enumerate(RANKS)
    ]


@pytest.fixture
def registry(stack: Stack) -> Iterator[Registry]:
    registry = stack.registry()
    yield registry
    registry.close()


@pytest.mark.timeout(SECONDS + 600)
@pytest.mark.parametrize("kill", [False, True], ids=["undisturbed", "killed"])
async def test_whatever_tenants_do_at_once_answers_are_right_and_nothing_is_left(
    stack: Stack, hub: Hub, registry: Registry, contents: list[Content], *, kill: bool
) -> None:
    print(f"SOAK_SEED={SEED}")
    hub.repos |= {repo_of(n): Repo(files=each.repo_files) for n, each in enumerate(contents)}
    async with client(stack.url, stack.new_key(f"reference-{time.time_ns()}")) as api:
        base_answers = await learn_answers(api, contents)
    world = World(contents=contents, base_answers=base_answers, hub=hub, registry=registry)
    names = [f"soak-{time.time_ns()}-{number}" for number in range(TENANTS)]
    keys = [stack.new_key(name, "dedicated") for name in names]
    async with (
        client(stack.url, keys[0]) as first,
        client(stack.url, keys[1]) as second,
        client(stack.url, keys[2]) as third,
    ):
        tenants = [
            Tenant(name, registry.tenant(name).id, api, world)
            for name, api in zip(names, (first, second, third), strict=True)
        ]
        async with asyncio.TaskGroup() as tasks:
            killer = kill and tasks.create_task(
                keep_killing(
                    stack,
                    tenants,
                    lambda up: world.gateway_up.settle(time.monotonic(), [up]),
                    SEED,
                )
            )
            await soak(tenants, seed=SEED, duration_s=SECONDS)
            if killer:
                killer.cancel()
    for tenant in tenants:
        print(tenant.name, dict(sorted(tenant.counts.items())))
        assert tenant.counts["ask 200"]
    wait_for(lambda: is_ready(stack), "readiness after the last kill")
    ids = frozenset[str]().union(*(each.ids for each in tenants))
    tenant_ids = [each.id for each in tenants]
    assert ids
    found: list[dict[str, list[str]]] = []

    def is_clean() -> bool:
        found.append(leftovers(stack, ids, tenant_ids))
        return not found[-1]

    try:
        wait_for(is_clean, "the end of all adapters", deadline_s=180)
    except AssertionError:
        raise AssertionError(f"left: {found[-1]}") from None
