"""The load client from this side: started once, told of each run, its results read."""

import contextlib
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from pydantic import BaseModel, ConfigDict

from stack.bench.figures import Sample
from stack.installation import end_with_parent

READY, DONE = "load-client: ready", "load-client: done"
"""The lines that it prints, among vLLM's own."""
GENERATE_STREAM = "triton-generate-stream"
"""The name of generate_stream.py among the backends of `vllm bench serve`."""
START_WITHIN_S = 300
RUN_WITHIN_S = 1200


class LoadError(RuntimeError):
    """The load client ended or said nothing for long; the message says which."""


class RequestsFailedError(LoadError):
    """Requests of a run were not answered."""

    def __init__(self, failed: int, requests: int, words: str) -> None:
        super().__init__(f"{failed} of {requests} requests failed: {words}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go: one server's endpoint, and the key it wants, if any."""

    backend: str
    base_url: str
    endpoint: str
    key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked for: `streams` requests at a time until `prompts` are answered.

    `models` are asked in turn. The prompts are random words, the same for the same `seed`.
    """

    models: Sequence[str]
    streams: int
    prompts: int
    input_tokens: int
    output_tokens: int
    seed: int


class _Result(BaseModel):
    """What is read of a result file: seconds and tokens, and a list with an item a request."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    duration: float
    failed: int
    total_output_tokens: int
    ttfts: list[float]
    itls: list[list[float]]
    errors: list[str]


class LoadClient:
    """The running process."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, tokenizer: Path) -> None:
        self.process = psutil.Process(process.pid)
        self._popen = process
        self._folder = folder
        self._tokenizer = tokenizer
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def measure(self, target: Target, load: Load) -> Sample:
        """Do one run. Raises LoadError."""
        result = self._folder / "result.json"
        result.unlink(missing_ok=True)
        words = arguments(target, load, tokenizer=self._tokenizer, result=result)
        stdin = self._popen.stdin
        assert stdin is not None  # noqa: S101 - it was opened with a pipe
        stdin.write(json.dumps(words) + "\n")
        stdin.flush()
        self._wait_for(DONE, RUN_WITHIN_S)
        return read_result(json.loads(result.read_text(encoding="utf-8")))

    def wait_until_ready(self) -> None:
        """Return when it has imported vLLM, which takes a while. Raises LoadError."""
        self._wait_for(READY, START_WITHIN_S)

    def _wait_for(self, line: str, within_s: float) -> None:
        """Return when it has printed the line. Raises LoadError."""
        try:
            while (printed := self._lines.get(timeout=within_s)) != line:
                if printed is None:
                    raise LoadError(f"the load client ended: see {self._folder / 'client.log'}")
        except queue.Empty:
            raise LoadError(f"the load client said nothing for {within_s} s") from None

    def _read(self) -> None:
        stdout = self._popen.stdout
        assert stdout is not None  # noqa: S101 - it was opened with a pipe
        with (self._folder / "client.log").open("a", encoding="utf-8") as log:
            for line in stdout:
                log.write(line)
                log.flush()
                self._lines.put(line.strip())
        self._lines.put(None)


@contextlib.contextmanager
def running_client(folder: Path, tokenizer: Path) -> Iterator[LoadClient]:
    """The load client, starting; `tokenizer` is the base model's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "client-errors.log").open("wb") as errors:
        process = _start(tokenizer, errors)
    try:
        yield LoadClient(process, folder, tokenizer)
    finally:
        process.kill()
        process.wait()


def _start(tokenizer: Path, errors: IO[bytes]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "stack.bench.load_client", str(tokenizer)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - it only asks the kernel for a signal
    )


def arguments(target: Target, load: Load, *, tokenizer: Path, result: Path) -> list[str]:
    """The words of `vllm bench serve` for a run."""
    options = {
        "backend": target.backend,
        "base-url": target.base_url,
        "endpoint": target.endpoint,
        "model": load.models[0],
        "tokenizer": tokenizer,
        "dataset-name": "random",
        "random-input-len": load.input_tokens,
        "random-output-len": load.output_tokens,
        "num-prompts": load.prompts,
        "max-concurrency": load.streams,
        "seed": load.seed,
        "extra-body": json.dumps({"temperature": 0}),
        "lora-assignment": "round-robin",
        "result-dir": result.parent,
        "result-filename": result.name,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    words += ["--ignore-eos", "--disable-tqdm", "--save-result", "--save-detailed"]
    words += ["--lora-modules", *load.models]
    if target.key is not None:
        words += ["--header", f"Authorization=Bearer {target.key}"]
    return words


def read_result(document: dict[str, object]) -> Sample:
    """What a run's result file says. Raises RequestsFailedError."""
    result = _Result.model_validate(document)
    if result.failed:
        words = next((error for error in result.errors if error), "no reason given")
        raise RequestsFailedError(result.failed, len(result.errors), words)
    return Sample(
        seconds=result.duration,
        output_tokens=result.total_output_tokens,
        ttfts_s=result.ttfts,
        itls_s=[gap for gaps in result.itls for gap in gaps],
    )
