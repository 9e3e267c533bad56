"""Several tenants do everything at random at once: nothing wrong is answered, nothing is left.

SOAK_SECONDS and SOAK_SEED set how long it runs and what it does; a failure tells its seed.
"""

import os
import random
import signal
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select

from adapter_sync.registry.tables import adapters, aliases, fetches, revisions
from tests.e2e.conftest import PeftAnswer
from tests.e2e.soak import LONG, QUESTION, SHORT, Content, Tenant, clients, soak
from tests.hub_server import Hub
from tests.stack_process import Stack, running_stack, wait_for

SECONDS = float(os.environ.get("SOAK_SECONDS", "30"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 1_000_000)
TENANTS = 3
KILL_PERIOD_S = 7


@pytest.fixture(scope="module")
def contents(random_adapters: list[Path], peft_answer: PeftAnswer) -> list[Content]:
    return [
        Content(
            folder=folder,
            answers={tokens: peft_answer(QUESTION, folder, tokens) for tokens in (SHORT, LONG)},
        )
        for folder in random_adapters
    ]


@pytest.mark.timeout(SECONDS * 2 + 600)
async def test_whatever_tenants_do_at_once_answers_are_right_and_nothing_is_left(
    hub: Hub, contents: list[Content], tmp_path: Path
) -> None:
    answers = {each.answers[SHORT] for each in contents}
    assert len(answers) == len(contents), "the adapters must be told apart by their answers"
    print(f"SOAK_SEED={SEED}")
    rng = random.Random(SEED)  # noqa: S311 - a test's draw, to be repeated
    with running_stack(tmp_path, settings={"HF_ENDPOINT": hub.endpoint}) as stack:
        keys = [stack.new_key(f"soak-{number}", "dedicated") for number in range(TENANTS)]
        stop = threading.Event()
        killer = threading.Thread(target=keep_killing, args=(stack, stop), daemon=True)
        async with clients(stack.url, keys) as apis:
            tenants = [
                Tenant(f"soak-{number}", api, contents, hub, random.Random(rng.random()))  # noqa: S311
                for number, api in enumerate(apis)
            ]
            killer.start()
            try:
                await soak(tenants, seed=SEED, duration_s=SECONDS)
            finally:
                stop.set()
        for tenant in tenants:
            print(tenant.name, dict(sorted(tenant.counts.items())))
            assert tenant.counts.get("answer 200")
        wait_for(lambda: not leftovers(stack), "the end of all adapters", deadline_s=60)


def leftovers(stack: Stack) -> dict[str, object]:
    """What is still there of adapters, by where it is."""
    engine = create_engine(f"sqlite:///{stack.data / 'registry.db'}")
    with engine.connect() as connection:
        rows = {
            table.name: connection.scalar(select(func.count()).select_from(table))
            for table in (adapters, revisions, fetches, aliases)
        }
    engine.dispose()
    status = stack.engine()
    blobs = [each.name for each in stack.data.joinpath("blobs").rglob("*") if each.is_file()]
    found: dict[str, object] = {
        **rows,
        "folders": stack.adapter_folders(),
        "staging": stack.leftovers(),
        "blobs": blobs,
        "engine": "unknown" if status is None else sorted(status.adapters),
        "in flight": "unknown" if status is None else status.in_flight,
    }
    return {where: what for where, what in found.items() if what}


def keep_killing(stack: Stack, stop: threading.Event) -> None:
    """In the second half kill adapter_sync again and again; it is started anew each time."""
    if stop.wait(SECONDS / 2):
        return
    while not stop.wait(KILL_PERIOD_S):
        for process in stack.processes("-m adapter_sync"):
            process.send_signal(signal.SIGKILL)
