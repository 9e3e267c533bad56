"""Whether memory grows with requests: of the gateway, adapter_sync, Triton and the stub.

A real gateway and a real Triton, whose base model emits ready tokens: with an engine so many
requests would take hours. What vLLM itself keeps is not measured.
"""

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

    from stack.bench.servers import Installation, Server

TOKENS_PER_S = 1000
ANSWER_TOKENS = 4
MIB = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Print each process's resident memory after every part; 1 when a server or request failed."""
    arguments = parser().parse_args(argv)
    import httpx

    from stack.bench.ready_tokens import running_installation
    from stack.child import ChildError
    from stack.installation import work_folder

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    measured: list[Mapping[str, float]] = []
    try:
        with (
            work_folder("bench-memory-") as folder,
            running_installation(TOKENS_PER_S, folder) as installation,
        ):
            for row in rows(installation, arguments.requests, arguments.parts, arguments.streams):
                measured.append(row)
                print(line(row, head=len(measured) == 1), flush=True)
    except (ChildError, httpx.HTTPError) as error:
        print(f"bench-memory: {error}", file=sys.stderr)
        return 1
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="scripts/bench-memory", description=__doc__)

    def number(name: str, default: int, words: str) -> None:
        made.add_argument(name, type=int, default=default, help=f"{words} (default: {default})")

    number("--requests", 100_000, "streamed chat completions in all")
    number("--parts", 10, "how often the memory is told")
    number("--streams", 16, "requests at a time")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return made


def rows(
    installation: "Installation", requests: int, parts: int, streams: int
) -> Iterator[Mapping[str, float]]:
    """After each part: how many requests were answered, and each process's memory in MiB.

    Raises httpx.HTTPError.
    """
    from stack.bench.processes import cost_between, used_by

    server = installation.server([])
    with contextlib.ExitStack() as opened, ThreadPoolExecutor(streams) as threads:
        # A tenant each: one alone would meet its rate limit.
        clients = [
            opened.enter_context(installation.api(installation.new_key(f"bench-{number}")))
            for number in range(streams)
        ]
        each = requests // (parts * streams)
        for part in range(parts + 1):
            if part:
                list(threads.map(lambda client: ask(client, server, each), clients))
            used = used_by(server.roots)
            memory = cost_between(used, used).rss_bytes
            yield {
                "requests": each * streams * part,
                **{name: round(size / MIB, 1) for name, size in sorted(memory.items())},
            }


def ask(client: "httpx.Client", server: "Server", times: int) -> None:
    """Streams, one after the other, each read to its end. Raises httpx.HTTPError."""
    body = {
        "model": server.base_model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": ANSWER_TOKENS,
        "stream": True,
    }
    for _ in range(times):
        answer = client.post(server.target.endpoint, json=body)
        answer.raise_for_status()


def line(row: Mapping[str, float], *, head: bool) -> str:
    """A row in Markdown, under the table's head if it is the first."""
    cells = "| " + " | ".join(f"{value:g}" for value in row.values()) + " |"
    if not head:
        return cells
    names = "| " + " | ".join(f"{name} MiB" if name != "requests" else name for name in row) + " |"
    return f"{names}\n|{' --- |' * len(row)}\n{cells}"


if __name__ == "__main__":
    sys.exit(main())
