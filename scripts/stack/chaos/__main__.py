"""Do faults to an installation of its own, one after the other, and tell what clients saw."""

import argparse
import contextlib
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stack.bench.servers import Installation
    from stack.chaos.faults import Fault, Target
    from stack.chaos.observed import Sample, Verdict

REQUEST_DEADLINE_S = 20.0
RECOVERY_MARGIN_S = 15.0
"""Beside the time that the installation took to start."""
STEADY_S = 5.0
LEFT_WITHIN_S = 60.0
PERIOD_S = 0.5
EXAMPLES = ("finance", "legal")


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One fault's row."""

    fault: str
    verdict: "Verdict"
    lost: list[str]
    left: list[str]

    @property
    def is_good(self) -> bool:
        """Whether everything went as promised."""
        return not (self.verdict.faults or self.lost or self.left)


def main(argv: Sequence[str] | None = None) -> int:
    """Do the faults; 1 when one of them did not go as promised."""
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Start an installation in a folder of its own, do faults to it while clients "
        "ask, and print for each: what the clients saw, how long it took to recover, what was "
        "lost and what was left. The exit status is 1 when something did not go as promised "
        "(docs/promises.md).",
    )
    parser.add_argument("--only", nargs="+", metavar="FAULT", help="only these")
    parser.add_argument("--quick", action="store_true", help="only the four that the tests do")
    parser.add_argument("--list", action="store_true", help="print the faults, and do none")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the outcomes")
    arguments = parser.parse_args(argv)
    # Not before: --help works without what they need.
    from stack.chaos.faults import FAULTS, QUICK

    names = [each.name for each in FAULTS]
    if unknown := set(arguments.only or ()) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}: --list prints them all")
    wanted = arguments.only or (QUICK if arguments.quick else names)
    faults = [each for each in FAULTS if each.name in wanted]
    if arguments.list:
        for fault in faults:
            print(f"{fault.name:22}{fault.what}")
        return 0
    outcomes = run(faults)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps([asdict(each) for each in outcomes], indent=2))
    return 0 if all(each.is_good for each in outcomes) else 1


def run(faults: Sequence["Fault"]) -> list[Outcome]:
    """Each fault on an installation that serves; it is started again where the fault ends it."""
    from stack.bench.servers import Installation
    from stack.installation import work_folder

    outcomes = []
    with work_folder("chaos-") as folder, contextlib.ExitStack() as stack:
        installation = Installation(folder)
        began = time.monotonic()
        serving = stack.enter_context(contextlib.ExitStack())
        serving.enter_context(installation.running())
        start_s = time.monotonic() - began
        print(f"chaos: ready after {start_s:.0f} s", flush=True)
        for name in EXAMPLES:
            installation.upload(name, example(name))
        answers = {name: answer_of(installation, name) for name in EXAMPLES}
        for fault in faults:
            outcome = do(fault, installation, serving, answers, bound_s=start_s + RECOVERY_MARGIN_S)
            outcomes.append(outcome)
            tell(outcome)
            if outcome.verdict.recovered_s is None:
                shutil.copy(installation.log, "chaos-serve.log")
                print("chaos: broken off; the log is in chaos-serve.log", flush=True)
                break
    return outcomes


def do(
    fault: "Fault",
    installation: "Installation",
    serving: contextlib.ExitStack,
    answers: dict[str, str],
    *,
    bound_s: float,
) -> Outcome:
    """Do one fault and watch until everything is right again."""
    from stack.chaos.observed import verdict
    from stack.child import ChildError

    target = target_of(installation)
    before = processes_of(target)
    old = {part: target.process(part).pid for part in fault.replaces}
    with watching(installation, EXAMPLES[-1]) as watch:
        time.sleep(2 * PERIOD_S)
        watch.begin()
        fault.do(target)
        if fault.ends:
            with contextlib.suppress(Exception):
                serving.close()
            # One that can't start again is never steady.
            with contextlib.suppress(ChildError):
                serving.enter_context(installation.running_again())
        watch.wait_until_steady(within_s=3 * bound_s)
    found = verdict(
        watch.samples,
        bound_s=bound_s,
        deadline_s=REQUEST_DEADLINE_S,
        may_refuse=fault.is_at_gateway,
    )
    if found.recovered_s is None:
        return Outcome(fault=fault.name, verdict=found, lost=[], left=[])
    damaged = heal(installation) if fault.fails_adapter else []
    return Outcome(
        fault=fault.name,
        verdict=found,
        lost=[*damaged, *lost(installation, answers), *unable(installation, old)],
        left=left(installation, before),
    )


def tell(outcome: Outcome) -> None:
    """One row."""
    found = outcome.verdict
    recovered = "never" if found.recovered_s is None else f"{found.recovered_s:.0f} s"
    print(
        f"chaos: {outcome.fault:22}{'as promised' if outcome.is_good else 'FAULT':13}"
        f"recovered {recovered:7}longest request {found.longest_s:4.1f} s   {found.statuses}   "
        f"lost {len(outcome.lost)}   left {len(outcome.left)}",
        flush=True,
    )
    for each in (*found.faults, *outcome.lost, *outcome.left):
        print(f"chaos:     {each}", flush=True)


@dataclass(slots=True, kw_only=True)
class Watch:
    """Asks an adapter and the readiness, all the time, in a thread of its own."""

    url: str
    key: str
    model: str
    samples: "list[Sample]" = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)
    began_at: float = 0.0

    def begin(self) -> None:
        """Count from now on: the fault is done."""
        self.samples.clear()
        self.began_at = time.monotonic()

    def run(self) -> None:
        """Ask until `ending` is set."""
        while not self.ending.wait(PERIOD_S):
            self.samples.append(self.ask())

    def ask(self) -> "Sample":
        """One request, after a look at the readiness."""
        import httpx

        from stack.chaos.observed import Sample

        at = time.monotonic()
        was_ready = is_ready(self.url)
        body = {"model": self.model, "prompt": "What is a contract?", "max_tokens": 4}
        asked_at, status, is_proper = time.monotonic(), 0, True
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(
                f"{self.url}/v1/completions",
                json=body,
                headers={
                    "authorization": f"Bearer {self.key}",
                    "x-request-timeout": f"{REQUEST_DEADLINE_S:g}",
                },
                timeout=10 * REQUEST_DEADLINE_S,
                trust_env=False,
            )
            status = answer.status_code
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                is_proper = "retry-after" in answer.headers or status == HTTPStatus.GATEWAY_TIMEOUT
                is_proper = is_proper and b'"message"' in answer.content
        return Sample(
            at_s=at - self.began_at,
            took_s=time.monotonic() - asked_at,
            status=status,
            is_proper=is_proper,
            was_ready=was_ready,
        )

    def wait_until_steady(self, *, within_s: float) -> None:
        """Return when all has been right for STEADY_S, or the time is over."""
        good_since = None
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            time.sleep(PERIOD_S)
            last = self.samples[-1] if self.samples else None
            # A fault shows with the next request at the latest.
            if last is None or last.at_s < 2 * PERIOD_S:
                continue
            if last.status != HTTPStatus.OK or not last.was_ready:
                good_since = None
            elif good_since is None:
                good_since = time.monotonic()
            elif time.monotonic() - good_since >= 2 * STEADY_S:
                return


@contextlib.contextmanager
def watching(installation: "Installation", adapter: str) -> Iterator[Watch]:
    """A client that asks the adapter until the block ends."""
    watch = Watch(url=installation.url, key=installation.key, model=requested(adapter))
    thread = threading.Thread(target=watch.run)
    thread.start()
    try:
        yield watch
    finally:
        watch.ending.set()
        thread.join()


def is_ready(url: str) -> bool:
    """What the gateway says of itself."""
    import httpx

    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/health/ready", timeout=10, trust_env=False).is_success
    return False


def requested(adapter: str) -> str:
    """The model that a client asks for."""
    from stack.bench.servers import BASE_MODEL

    return f"{BASE_MODEL}:{adapter}"


def example(name: str) -> Path:
    """One of the committed adapters."""
    from stack.installation import ROOT

    return ROOT / "examples" / name / "adapter"


def answer_of(installation: "Installation", adapter: str) -> str:
    """The adapter's greedy answer."""
    body = {"model": requested(adapter), "prompt": "A contract is", "max_tokens": 12}
    with installation.api() as api:
        answer = api.post("/v1/completions", json=body | {"temperature": 0}).raise_for_status()
    text: str = answer.json()["choices"][0]["text"]
    return text


def target_of(installation: "Installation") -> "Target":
    """What faults are done to."""
    from stack.bench.servers import BASE_MODEL
    from stack.chaos.faults import Target

    (serve,) = installation.roots
    return Target(settings=installation.settings, base_model=BASE_MODEL, serve=serve)


def processes_of(target: "Target") -> list[int]:
    """Those of the engine: after a fault either they serve on, or they are gone."""
    found = []
    for part in ("stub", "engine core", "worker"):
        with contextlib.suppress(LookupError):
            found.append(target.process(part).pid)
    return found


def heal(installation: "Installation") -> list[str]:
    """Upload the examples' content again in the place of what failed; what is wrong with that."""
    deadline = time.monotonic() + LEFT_WITHIN_S
    failed: list[dict[str, Any]] = []
    with installation.api() as api:
        while not failed and time.monotonic() < deadline:
            time.sleep(PERIOD_S)
            listed = api.get("/v1/adapters").json()["data"]
            failed = [each for each in listed if each["status"] == "failed"]
    for each in failed:
        installation.upload(each["name"], example(each["name"]), replace=True)
    codes = [(each.get("error") or {}).get("code") for each in failed]
    return [] if codes == ["blob_corrupt"] else [f"of a damaged blob came {codes}"]


def unable(installation: "Installation", old: dict[str, int]) -> list[str]:
    """What can't be done any more: a process that did not come back, an upload that fails."""
    found = []
    deadline = time.monotonic() + LEFT_WITHIN_S
    for part, pid in old.items():
        while pid_of(target_of(installation), part) in (None, pid):
            if time.monotonic() > deadline:
                found.append(f"{part} did not come back")
                break
            time.sleep(PERIOD_S)
    try:
        adapter_id = installation.upload("during-chaos", example(EXAMPLES[0]))
        with installation.api() as api:
            api.delete(f"/v1/adapters/{adapter_id}").raise_for_status()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the outcome
        found.append(f"an upload fails: {error}")
    return found


def pid_of(target: "Target", part: str) -> int | None:
    """The process's number; None when there is none."""
    with contextlib.suppress(LookupError):
        return target.process(part).pid
    return None


def lost(installation: "Installation", answers: dict[str, str]) -> list[str]:
    """What is no more as it was before: adapters and their answers."""
    found = []
    with installation.api() as api:
        listed = {each["name"]: each for each in api.get("/v1/adapters").json()["data"]}
    for name, before in answers.items():
        if name not in listed:
            found.append(f"the adapter {name} is gone")
        elif listed[name]["status"] != "ready":
            found.append(f"the adapter {name} is {listed[name]['status']}")
        elif answer_of(installation, name) != before:
            found.append(f"the adapter {name} answers otherwise")
    return found


def left(installation: "Installation", before: Sequence[int]) -> list[str]:
    """What should be gone: processes of an earlier engine, staged files."""
    deadline = time.monotonic() + LEFT_WITHIN_S
    while (found := _left(installation, before)) and time.monotonic() < deadline:
        time.sleep(PERIOD_S)
    return found


def _left(installation: "Installation", before: Sequence[int]) -> list[str]:
    now = processes_of(target_of(installation))
    old = [pid for pid in before if pid not in now and is_alive(pid)]
    staged = [
        path
        for path in installation.settings.staging_folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    ]
    return [f"process {pid}" for pid in old] + [str(path) for path in staged]


def is_alive(pid: int) -> bool:
    """Not so for what has ended and was not waited for: tritonserver keeps a killed stub so."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
