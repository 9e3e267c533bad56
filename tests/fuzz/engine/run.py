"""Requests made at random against a real engine, which has to survive each of them.

    python -m tests.fuzz.engine.run --seconds 3600 --seed 7
    python -m tests.fuzz.engine.run --again FILE      # the requests of a file, one at a time

A file holds a request a line, as a failed run writes them. The exit status is 1 when something was
wrong.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fuzz.engine.requests import (
    EMBEDDING_ENDPOINTS,
    GENERATION_ENDPOINTS,
    Requests,
    known_fields,
)
from tests.fuzz.engine.running import (
    ADAPTERS,
    CANCELLED,
    EMBEDDING,
    ENCODER,
    GENERATION,
    SMALL,
    Answer,
    Asked,
    ask,
    running_engine,
)

if TYPE_CHECKING:
    from engine.base_engine import BaseEngine

AT_ONCE = 12
ANSWER_WITHIN_S = 180.0
PLAIN_WITHIN_S = 60.0
REFUSALS = range(400, 500)
QUEUE_CODES = ("queue_full", "queue_timeout")
OF_THE_SERVER = b'"type": "server_error"', b'"type": "api_error"', b'"code": "server_error"'


class BrokenError(Exception):
    """Something that may not happen has happened."""


class Fuzzing:
    """Rounds of requests to one engine, with a look at the engine after each."""

    def __init__(self, engine: "BaseEngine", base_model: str) -> None:
        self._engine = engine
        self._base_model = base_model
        self._count = 0
        self._plain: dict[str | None, bytes] = {}
        self.statuses: Counter[str] = Counter()
        self.faults: list[tuple[str, Asked]] = []

    async def round(self, requests: Sequence[Asked]) -> None:
        """Ask all at once. Raises BrokenError when the engine is not as it was."""
        answers = await asyncio.gather(*map(self._ask, requests))
        for asked, answer in zip(requests, answers, strict=True):
            self.statuses[f"{asked.endpoint} {answer.status}"] += 1
            if (fault := fault_of(answer)) is not None:
                self.faults.append((fault, asked))
        await self.look()

    async def look(self) -> None:
        """Nothing of earlier requests is left, and plain requests are answered as ever."""
        if not self._engine.status()["alive"]:
            raise BrokenError("the engine is dead")
        for lora_name in (None, *ADAPTERS.values()) if self._base_model == GENERATION else (None,):
            said = plain_answer(await self._ask(self._plain_request(lora_name)))
            if self._plain.setdefault(lora_name, said) != said:
                raise BrokenError(f"{lora_name}: {said!r}, and not {self._plain[lora_name]!r}")
        deadline = time.monotonic() + PLAIN_WITHIN_S
        while left := self._engine.status()["in_flight"]:
            if time.monotonic() > deadline:
                raise BrokenError(f"{left} requests are left in the engine")
            await asyncio.sleep(0.05)

    async def free(self) -> None:
        """Every block of the cache is free again. Raises BrokenError."""
        # vLLM says no as long as a sequence holds one.
        deadline = time.monotonic() + PLAIN_WITHIN_S
        while not await self._engine._engine.reset_prefix_cache():
            if time.monotonic() > deadline:
                raise BrokenError("a sequence is left in the engine's cache")
            await asyncio.sleep(0.1)

    def _plain_request(self, lora_name: str | None) -> Asked:
        if self._base_model == EMBEDDING:
            return Asked(endpoint="embeddings", body={"model": "asked", "input": "one two"})
        body = {"model": "asked", "prompt": "The capital of France is", "max_tokens": 8}
        return Asked(endpoint="completions", body=body | {"temperature": 0}, lora_name=lora_name)

    async def _ask(self, asked: Asked) -> Answer:
        self._count += 1
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                return await ask(self._engine, asked, f"fuzz-{self._count}")
        except TimeoutError:
            raise BrokenError(f"no answer within {ANSWER_WITHIN_S:g} s: {asked.dump()}") from None


def fault_of(answer: Answer) -> str | None:
    """What is wrong with an answer; None when nothing is."""
    shown = answer.body[:600].decode(errors="replace")
    if answer.status is None:
        return "no status"
    if answer.status in (CANCELLED, 429) or answer.status in REFUSALS:
        return None
    if answer.status == 503 and any(code in shown for code in QUEUE_CODES):
        return None
    if answer.status != 200:
        return f"{answer.status}: {shown}"
    for event in answer.body.split(b"\n\n"):
        if b'"error"' in event and any(words in event for words in OF_THE_SERVER):
            return f"an event: {event[:600].decode(errors='replace')}"
    return None


def plain_answer(answer: Answer) -> bytes:
    """What a plain request was answered. Raises BrokenError when it was not."""
    if answer.status != 200:
        raise BrokenError(f"a plain request: {answer.status} {answer.body[:300]!r}")
    document = json.loads(answer.body)
    said = [
        each.get("text") or each.get("embedding")
        for each in (document.get("choices") or document["data"])
    ]
    return json.dumps(said if isinstance(said[0], str) else [round(x, 3) for x in said[0]]).encode()


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, and print what was asked and answered how often."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model", choices=(GENERATION, EMBEDDING), default=GENERATION)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--again", type=Path, help="ask the requests of this file instead")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fuzz-requests.jsonl"),
        help="where a failed run writes its last requests",
    )
    parser.add_argument("--strict", action="store_true", help="a server's error fails the run too")
    arguments = parser.parse_args(argv)
    print(f"seed {arguments.seed}", flush=True)
    return asyncio.run(run(arguments))


async def run(arguments: argparse.Namespace) -> int:
    """The run that the arguments describe; its exit status."""
    base_model = arguments.base_model
    settings = SMALL if base_model == GENERATION else ENCODER
    with tempfile.TemporaryDirectory() as folder:
        async with running_engine(Path(folder), base_model, settings) as engine:
            fuzzing = Fuzzing(engine, base_model)
            await fuzzing.look()
            return await fuzz(fuzzing, rounds_of(arguments), arguments.out, strict=arguments.strict)


def rounds_of(arguments: argparse.Namespace) -> Iterator[Sequence[Asked]]:
    """The requests, in rounds of those that are asked at once."""
    if arguments.again is not None:
        for line in arguments.again.read_text().splitlines():
            yield [Asked.load(line)]
        return
    is_generation = arguments.base_model == GENERATION
    requests = Requests(
        arguments.seed,
        fields=known_fields(),
        endpoints=GENERATION_ENDPOINTS if is_generation else EMBEDDING_ENDPOINTS,
        with_adapters=is_generation,
    )
    deadline = time.monotonic() + arguments.seconds
    while time.monotonic() < deadline:
        yield [requests.next() for _ in range(AT_ONCE)]


async def fuzz(
    fuzzing: Fuzzing, rounds: Iterator[Sequence[Asked]], out: Path, *, strict: bool
) -> int:
    """The rounds, until one breaks the engine; the exit status."""
    last: Sequence[Asked] = ()
    try:
        for number, last in enumerate(rounds):
            await fuzzing.round(last)
            if number % 8 == 7:
                await fuzzing.free()
        await fuzzing.free()
    except BrokenError as broken:
        _write(last, out)
        print(f"BROKEN: {broken}\nthe requests of the last round are in {out}", flush=True)
        return 1
    finally:
        for kind, count in sorted(fuzzing.statuses.items()):
            print(f"{count:6} {kind}")
        for fault, asked in fuzzing.faults:
            print(f"FAULT {fault}\n  {asked.dump()[:3000]}")
        sys.stdout.flush()
    if fuzzing.faults:
        print(f"the requests that were answered with a server's error are in {out}")
        _write([asked for _, asked in fuzzing.faults], out)
    return 1 if fuzzing.faults and strict else 0


def _write(requests: Sequence[Asked], out: Path) -> None:
    out.write_text("".join(f"{asked.dump()}\n" for asked in requests))


if __name__ == "__main__":
    sys.exit(main())
