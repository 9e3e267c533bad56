"""The soak: every tenant's tasks at once for a while, then everything is deleted."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

import httpx
import psutil

from tests.e2e.soak.contents import ALL_QUESTIONS, QUESTIONS, Content, Question, chat
from tests.e2e.soak.tenant import ALIASES, NAMES, Tenant
from tests.stack_process import BASE_MODEL, Stack, is_ready, wait_for

ASKERS = 3
AT_ONCE = 8
LOOK_PERIOD_S = 0.3
ALIAS_PERIOD_S = 0.5
LEAVE_PERIOD_S = 1.0
REQUEST_S = 180


Act = Callable[[random.Random], Awaitable[None]]


async def soak(tenants: Sequence[Tenant], *, seed: int, duration_s: float) -> None:
    """Run every tenant's tasks for that long, then delete everything.

    Each task draws from a generator of its own, so a seed fixes what each does one after the
    other; how they meet is up to the machine. Raises AssertionError.
    """
    deadline_s = time.monotonic() + duration_s

    async def keep(name: str, act: Act, pause_s: float = 0) -> None:
        rng = random.Random(f"{seed} {name}")  # noqa: S311 - a test's draw, to be repeated
        while time.monotonic() < deadline_s:
            await act(rng)
            await asyncio.sleep(rng.random() * 2 * pause_s)

    async with asyncio.TaskGroup() as tasks:
        for tenant in tenants:
            others = [each for each in tenants if each is not tenant]
            acts: dict[str, tuple[Act, float]]
            acts = {f"change {name}": (partial(tenant.change, name), 0.0) for name in NAMES}
            acts |= {
                f"alias {alias}": (partial(tenant.change_alias, alias), ALIAS_PERIOD_S)
                for alias in ALIASES
            }
            acts |= {f"ask {number}": (tenant.ask, 0.0) for number in range(ASKERS)}
            acts |= {
                f"look at {other.name}": (partial(tenant.look, other), LOOK_PERIOD_S)
                for other in others
            }
            acts["leave"] = (tenant.leave, LEAVE_PERIOD_S)
            acts["key"] = (tenant.change_key, 0.0)
            for name, (act, pause_s) in acts.items():
                tasks.create_task(keep(f"{tenant.name} {name}", act, pause_s))
    await asyncio.gather(*(tenant.clear() for tenant in tenants))


async def learn_answers(api: httpx.AsyncClient, contents: Sequence[Content]) -> dict[Question, str]:
    """Ask the engine for each content's answers, and the base model's, which come back.

    Raises AssertionError unless all can be told apart by every question.
    """
    limit = asyncio.Semaphore(AT_ONCE)

    async def answer(model: str, question: Question) -> str:
        async with limit:
            got = await api.post("/v1/chat/completions", json=chat(model, question))
        assert got.is_success, got.text
        text: str = got.json()["choices"][0]["message"]["content"]
        return text

    async def answers(model: str) -> dict[Question, str]:
        texts = await asyncio.gather(*(answer(model, each) for each in ALL_QUESTIONS))
        return dict(zip(ALL_QUESTIONS, texts, strict=True))

    async def learn(number: int, content: Content) -> None:
        name = f"reference-{number}"
        made = await api.post(
            "/v1/adapters/upload",
            data={"name": name, "base_model": BASE_MODEL},
            files=content.files,
            headers={"Prefer": "wait=60"},
        )
        assert made.is_success, made.text
        content.answers.update(await answers(made.json()["model"]))
        (await api.delete(f"/v1/adapters/{made.json()['id']}")).raise_for_status()

    base = await answers(BASE_MODEL)
    await asyncio.gather(*(learn(number, each) for number, each in enumerate(contents)))
    for question in ALL_QUESTIONS:
        told = {each.answers[question] for each in contents} | {base[question]}
        assert len(told) == len(contents) + 1, f"some answer alike: {QUESTIONS[question[0]]}"
    return base


async def keep_killing(
    stack: Stack, tenants: Sequence[Tenant], gateway_up: Callable[[bool], None], seed: int
) -> None:
    """Kill adapter_sync and, less often, the gateway at random moments; both are started anew."""
    rng = random.Random(f"{seed} kill")  # noqa: S311 - a test's draw, to be repeated
    while True:
        await asyncio.sleep(rng.uniform(0.5, 6))
        which = rng.choice(["adapter_sync", "adapter_sync", "gateway"])
        if which == "gateway":
            gateway_up(False)
        killed = stack.processes(f"-m {which}")
        for process in killed:
            process.kill()
        await asyncio.to_thread(psutil.wait_procs, killed)
        tenants[0].counts[f"{which} killed"] += 1
        if which == "gateway":
            await asyncio.to_thread(wait_for, partial(is_ready, stack), "the gateway")
            gateway_up(True)


@contextlib.asynccontextmanager
async def client(url: str, key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client with the key, with as many connections as it takes."""
    async with httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=REQUEST_S,
        limits=httpx.Limits(max_connections=None),
        trust_env=False,
    ) as api:
        yield api
