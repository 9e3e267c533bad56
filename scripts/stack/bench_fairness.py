"""Who waits for whom: first tokens with the queue before the engine, and without it.

Two installations, one after the other, each with a real Triton, vLLM, adapter_sync and gateway.
First one tenant floods the base model and another asks it now and then; then more adapters than
the engine has slots for are all kept busy.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

    from stack.bench.servers import Installation

WARM_UP_S, STALLED_S = 8.0, 600
ALONE_S = 20.0
ADAPTERS = "alone, beside | adapters' p99, median and slowest | ratio |"
WORDS = ("time", "year", "people", "way", "day", "thing", "life", "world", "school", "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured; a prompt's words are about as many tokens."""

    streams: int
    requests: int
    prompt_words: int
    answer_tokens: int
    quiet_tokens: int
    adapters: int
    slots: int
    adapter_streams: int
    adapter_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """First tokens, in milliseconds from sending the request."""

    p50: float
    p99: float
    requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one installation.

    `flood_tokens_per_s` is what the flooding tenant gets beside the quiet one, and
    `flood_alone_tokens_per_s` once that has been away so long that no room is left for it;
    `back_ms` is how long the request waits with which it comes back. `adapters` are the waits of
    each adapter's requests; one that was still waiting at the end counts with what it had waited.
    """

    alone: Waits
    flooded: Waits
    back_ms: float
    flood_alone_tokens_per_s: float
    flood_tokens_per_s: float
    adapters: Sequence[Waits]

    @property
    def quiet_ratio(self) -> float:
        """How many times later the quiet tenant's p99 comes under the flood."""
        return self.flooded.p99 / self.alone.p99

    @property
    def adapter_ratio(self) -> float:
        """The slowest adapter's p99 by the median one's."""
        p99s = [each.p99 for each in self.adapters]
        return max(p99s) / statistics.median(p99s)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures with the queue and without it; 1 when an installation failed."""
    arguments = parser().parse_args(argv)
    from stack.child import ChildError
    from stack.installation import work_folder

    plan = Plan(**{name: getattr(arguments, name) for name in Plan.__dataclass_fields__})
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    admissions = {"queue": arguments.admission, "no queue": False}
    if arguments.only is not None:
        admissions = {arguments.only: admissions[arguments.only]}
    figures = {}
    try:
        with work_folder("bench-fairness-") as folder:
            for name, admission in admissions.items():
                say(f"starting an installation: {name}")
                figures[name] = measure(plan, folder / name.replace(" ", "-"), admission)
                print(table({name: figures[name]}), flush=True)
    except ChildError as error:
        print(f"bench-fairness: {error}", file=sys.stderr)
        return 1
    print(table(figures))
    if arguments.json is not None:
        document = {name: asdict(each) for name, each in figures.items()}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="scripts/bench-fairness", description=__doc__)

    def number(name: str, default: int, words: str) -> None:
        made.add_argument(name, type=int, default=default, help=f"{words} (default: {default})")

    number("--streams", 64, "the flooding tenant's requests at a time")
    number("--requests", 60, "the quiet tenant's requests, one a second, alone and flooded")
    number("--prompt-words", 60, "words of a prompt")
    number("--answer-tokens", 32, "tokens of an answer")
    number("--quiet-tokens", 8, "tokens of an answer to the quiet tenant")
    number("--adapters", 6, "adapters that are kept busy, each of a tenant of its own")
    number("--slots", 2, "the engine's slots, max_loras")
    number("--adapter-streams", 4, "requests at a time for each adapter")
    number("--adapter-seconds", 60, "how long the adapters are kept busy")
    made.add_argument(
        "--admission",
        type=json.loads,
        metavar="JSON",
        help="`admission` of 1/model.json, instead of what the base model has",
    )
    made.add_argument("--only", choices=["queue", "no queue"], help="one installation alone")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return made


def say(text: str) -> None:
    """Tell what is being done."""
    print(f"bench-fairness: {text}", file=sys.stderr, flush=True)


def table(figures: dict[str, Figures]) -> str:
    """The figures in Markdown."""
    rows = [
        f"| | alone p50, p99 | flooded p50, p99 | ratio of p99 | back | flood {ADAPTERS}",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, each in figures.items():
        p99s = [waits.p99 for waits in each.adapters]
        rows.append(
            f"| {name} | {each.alone.p50:.0f}, {each.alone.p99:.0f} ms "
            f"| {each.flooded.p50:.0f}, {each.flooded.p99:.0f} ms | {each.quiet_ratio:.2f} "
            f"| {each.back_ms:.0f} ms "
            f"| {each.flood_alone_tokens_per_s:.0f}, {each.flood_tokens_per_s:.0f} tokens/s "
            f"| {statistics.median(p99s) / 1000:.1f}, {max(p99s) / 1000:.1f} s "
            f"| {each.adapter_ratio:.2f} |"
        )
    return "\n".join(rows)


def measure(plan: Plan, folder: Path, admission: object) -> Figures:
    """One installation's figures; None for `admission` leaves its model.json as it is."""
    from stack.bench.servers import BASE_MODEL, Installation, example
    from stack.serve import seed_repository

    installation = Installation(folder)
    settings = installation.settings
    seed_repository(settings)
    model_json = settings.model_repository / BASE_MODEL / "1" / "model.json"
    arguments = json.loads(model_json.read_text(encoding="utf-8"))
    given = {} if admission is None else {"admission": admission}
    model_json.write_text(json.dumps({**arguments, "max_loras": plan.slots, **given}))
    with installation.running():
        models = []
        for number in range(plan.adapters):
            installation.key = installation.new_key(f"tenant-{number}")
            installation.upload(f"adapter-{number}", example(number))
            models.append((installation.key, f"{BASE_MODEL}:adapter-{number}"))
        flood, quiet = installation.new_key("flood"), installation.new_key("quiet")
        return asyncio.run(_measure(plan, installation, (flood, quiet), models))


async def _measure(
    plan: Plan,
    installation: "Installation",
    keys: tuple[str, str],
    adapters: Sequence[tuple[str, str]],
) -> Figures:
    import httpx

    from engine.admission_settings import ABOUT_S
    from stack.bench.servers import BASE_MODEL

    flood, quiet = keys
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=installation.url, trust_env=False, timeout=STALLED_S, limits=limits
    ) as http:
        client = Client(http, plan)
        say("the quiet tenant alone")
        await client.ask(quiet, BASE_MODEL, Load(), plan.quiet_tokens)
        alone = waits_of(await client.now_and_then(quiet, BASE_MODEL))
        say(f"{alone}; the quiet tenant under the flood")
        async with client.busy([(flood, BASE_MODEL)], plan.streams) as (load,):
            await asyncio.sleep(WARM_UP_S)
            beside = asyncio.create_task(load.tokens_per_s(plan.requests))
            flooded = waits_of(await client.now_and_then(quiet, BASE_MODEL))
            flood_beside = await beside
            say(f"{flooded}, {flood_beside:.1f} tokens/s; the flood alone")
            await asyncio.sleep(ABOUT_S)
            flood_alone = await load.tokens_per_s(ALONE_S)
            back = Load()
            await client.ask(quiet, BASE_MODEL, back, plan.quiet_tokens)
        back_ms = round(back.first_tokens_s[0] * 1000, 1)
        say(f"{flood_alone:.1f} tokens/s; {plan.adapters} adapters, {plan.slots} slots")
        async with client.busy(adapters, plan.adapter_streams) as loads:
            await asyncio.sleep(plan.adapter_seconds)
            now = time.monotonic()
            waits = [
                waits_of(each.first_tokens_s + [now - sent for sent in each.waiting.values()])
                for each in loads
            ]
    return Figures(
        alone=alone,
        flooded=flooded,
        back_ms=back_ms,
        flood_alone_tokens_per_s=flood_alone,
        flood_tokens_per_s=flood_beside,
        adapters=waits,
    )


def waits_of(seconds: Sequence[float]) -> Waits:
    """Their percentiles, by nearest rank: the p99 of fewer than a hundred is the largest."""
    ordered = sorted(seconds)
    ranks = [min(len(ordered) - 1, int(len(ordered) * part)) for part in (0.5, 0.99)]
    p50, p99 = (round(ordered[rank] * 1000, 1) for rank in ranks)
    return Waits(p50=p50, p99=p99, requests=len(ordered))


@dataclass(slots=True, kw_only=True)
class Load:
    """What has come of some requests."""

    first_tokens_s: list[float] = field(default_factory=list)
    waiting: dict[int, float] = field(default_factory=dict)
    tokens: int = 0

    async def tokens_per_s(self, seconds: float) -> float:
        """What comes from now on."""
        before, began = self.tokens, time.monotonic()
        await asyncio.sleep(seconds)
        return (self.tokens - before) / (time.monotonic() - began)


class Client:
    """Tenants' clients, with streams."""

    def __init__(self, http: "httpx.AsyncClient", plan: Plan) -> None:
        self._http = http
        self._plan = plan
        # Prompts need not be secret.
        self._random = random.Random(0)  # noqa: S311

    async def ask(self, key: str, model: str, load: Load, tokens: int) -> None:
        """One request, streamed to its end."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": self._prompt()}],
            "max_tokens": tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        number = id(body)
        began = load.waiting[number] = time.monotonic()
        try:
            async with self._http.stream(
                "POST",
                "/v1/chat/completions",
                json=body,
                headers={"Authorization": f"Bearer {key}"},
            ) as answer:
                answer.raise_for_status()
                async for line in answer.aiter_lines():
                    if not line.startswith('data: {"id"'):
                        continue
                    if load.waiting.pop(number, None) is not None:
                        load.first_tokens_s.append(time.monotonic() - began)
                    load.tokens += 1
        finally:
            load.waiting.pop(number, None)

    async def now_and_then(self, key: str, model: str) -> list[float]:
        """A request each second, or after the one before; the seconds to their first tokens."""
        load = Load()
        for _ in range(self._plan.requests):
            next_one = asyncio.create_task(asyncio.sleep(1))
            await self.ask(key, model, load, self._plan.quiet_tokens)
            await next_one
        return load.first_tokens_s

    @contextlib.asynccontextmanager
    async def busy(
        self, models: Sequence[tuple[str, str]], streams: int
    ) -> AsyncIterator[list[Load]]:
        """So many requests at a time of each key for its model, until the block ends."""
        loads = [Load() for _ in models]
        tasks = [
            asyncio.create_task(self._keep_asking(key, model, load))
            for (key, model), load in zip(models, loads, strict=True)
            for _ in range(streams)
        ]
        try:
            yield loads
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_asking(self, key: str, model: str, load: Load) -> None:
        while True:
            await self.ask(key, model, load, self._plan.answer_tokens)

    def _prompt(self) -> str:
        return " ".join(self._random.choices(WORDS, k=self._plan.prompt_words))


if __name__ == "__main__":
    sys.exit(main())
