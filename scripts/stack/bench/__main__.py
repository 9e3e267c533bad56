"""`scripts/bench`: what it is told, and in which order it does it."""

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stack.bench.scenarios import (
    ADAPTERS,
    FULL,
    HOT_LOAD,
    QUICK,
    READY_TOKENS,
    SERVERS,
    STREAMS,
    Plan,
)

if TYPE_CHECKING:
    from stack.bench.figures import Document

ROOT = Path(__file__).resolve().parent.parent.parent.parent
DESCRIPTION = """\
Measure this server against vLLM's own, LiteLLM's proxy in front of that, and Triton alone: on
this machine, with the same weights, engine arguments and adapters, and with vLLM's own load
client (vllm bench serve) for all. They take turns under each load. No GPU is needed; LiteLLM is
installed into .runtime/litellm when it is first measured."""
EPILOG = """\
examples:
  scripts/bench --quick --json bench.json       less than ten minutes: what changed?
  scripts/bench                                 everything, for hours on two cores
  scripts/bench --ready-tokens                  a minute: what this server costs by itself
  scripts/bench --hot-load 1 500                how long adapters of these sizes take to load
  scripts/bench --servers ours vllm --scenarios base --streams 8 64 --rounds 5 --no-hot-load

The folder of --out gets bench.json, bench.md and the plots throughput, first_token, gap, cpu and
memory, as .png and .svg. docs/benchmarks.md says what each figure means. Ctrl-C ends the
measurement early and reports what there is.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the report; 1 when a server or the load client failed."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(words)
    plan = plan_of(arguments)
    if fault := fault_of(plan):
        parser().error(fault)
    from stack.bench.client import LoadError
    from stack.bench.measure import measure
    from stack.bench.results import write_results
    from stack.child import ChildError
    from stack.installation import work_folder

    def report(document: "Document") -> None:
        print(write_results(document, arguments.out, arguments.json), end="", flush=True)
        print(f"bench: the report and the plots are in {arguments.out}", file=sys.stderr)

    # As Ctrl-C does: the servers are stopped on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = shlex.join(["scripts/bench", *words])
    try:
        with work_folder("bench-") as folder:
            measure(plan, folder, command=command, report=report)
    except (ChildError, LoadError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: stopped", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="scripts/bench",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kind = made.add_mutually_exclusive_group()
    kind.add_argument(
        "--quick",
        action="store_true",
        help=f"one round of {words_of(QUICK.scenarios)} with {words_of(QUICK.streams)} streams; "
        f"no run begins more than {QUICK.within_s:g} s after all servers are ready",
    )
    kind.add_argument(
        "--ready-tokens",
        type=float,
        nargs="?",
        const=READY_TOKENS.ready_tokens_per_s,
        metavar="RATE",
        help="no engine: a Triton model emits ready tokens, RATE a second for each stream "
        f"(default: {READY_TOKENS.ready_tokens_per_s:g}); only {words_of(READY_TOKENS.servers)}",
    )
    kind.add_argument(
        "--hot-load",
        type=int,
        nargs="*",
        metavar="MB",
        help="only how long adapters of these sizes take from upload to first token "
        f"(default: {words_of(HOT_LOAD.hot_load_mb)}; the others load "
        f"{words_of(FULL.hot_load_mb)} at their end, --quick {words_of(QUICK.hot_load_mb)})",
    )
    made.add_argument("--servers", nargs="+", choices=SERVERS, help="default: all")
    made.add_argument(
        "--scenarios",
        nargs="+",
        choices=list(ADAPTERS),
        help="the base model alone, or how many adapters take turns; `oversubscribed` is "
        f"{ADAPTERS['oversubscribed']} of them with slots for 8 (default: all)",
    )
    made.add_argument(
        "--streams",
        nargs="+",
        type=int,
        metavar="N",
        help=f"requests at a time (default: {words_of(STREAMS)})",
    )
    made.add_argument("--rounds", type=int, metavar="N", help=f"default: {FULL.rounds}")
    made.add_argument(
        "--no-hot-load", action="store_true", help="leave out the adapters uploaded while serving"
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    made.add_argument(
        "--out",
        type=Path,
        default=ROOT / "data" / "bench",
        metavar="DIR",
        help="where the report and the plots go (default: data/bench)",
    )
    return made


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that is asked for: one of four, with what is given in place of its own."""
    plan = QUICK if arguments.quick else FULL
    if arguments.ready_tokens is not None:
        plan = replace(READY_TOKENS, ready_tokens_per_s=arguments.ready_tokens)
    if arguments.hot_load is not None:
        plan = replace(HOT_LOAD, hot_load_mb=arguments.hot_load or HOT_LOAD.hot_load_mb)
    given = {
        "servers": arguments.servers,
        "scenarios": arguments.scenarios,
        "streams": arguments.streams,
        "rounds": arguments.rounds,
        "hot_load_mb": () if arguments.no_hot_load else None,
    }
    return replace(plan, **{name: value for name, value in given.items() if value is not None})


def fault_of(plan: Plan) -> str | None:
    """Why the plan can't be done, None if it can."""
    if plan.ready_tokens_per_s is None:
        return None
    if plan.ready_tokens_per_s <= 0:
        return "--ready-tokens: the rate must be more than 0"
    if not set(plan.servers) <= set(READY_TOKENS.servers) or list(plan.scenarios) != ["base"]:
        servers = words_of(READY_TOKENS.servers)
        return f"--ready-tokens: there are only the servers {servers} and the scenario base"
    return None


def words_of(values: Sequence[object]) -> str:
    """Them, one after the other."""
    return ", ".join(map(str, values))


if __name__ == "__main__":
    sys.exit(main())
