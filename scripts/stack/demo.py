"""The main job, shown: adapters are uploaded while the base model streams, and serve at once."""

import argparse
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx
    import openai

    from adapter_sync.settings import Settings

BASE_MODEL = "smollm2-135m-instruct"
FIELDS = ("finance", "legal", "healthcare")
TENANT = "demo"
START_DEADLINE_S = 600
STOP_DEADLINE_S = 90
READY_CHECK_PERIOD_S = 0.5
STREAM_TOKENS = 200
ANSWER_TOKENS = 90
HOT_LOAD_LIMIT_S = 2.0
SCREEN_WIDTH = 150


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; 0 when everything it shows held, 1 when something did not."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Set up, start everything, upload the three example adapters while the base "
        "model streams, ask the base and each adapter the same questions, and stay up. The "
        "settings are those of scripts/serve.",
    )
    parser.add_argument("--once", action="store_true", help="stop at the end")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write what was measured to this file"
    )
    arguments = parser.parse_args(argv)
    from adapter_sync.errors import ConfigurationError
    from adapter_sync.settings import load_settings

    signal.signal(signal.SIGTERM, interrupt)
    try:
        if arguments.json is not None:
            arguments.json.touch()
        settings = load_settings()
        with serving(settings) as url:
            key = make_key(settings)
            measured = show(settings, url, key)
            if arguments.json is not None:
                arguments.json.write_text(json.dumps(asdict(measured), indent=2) + "\n")
            shortfalls = measured.shortfalls()
            for shortfall in shortfalls:
                print(f"demo: {shortfall}", file=sys.stderr)
            if not arguments.once:
                print(curl_lines(url, key), flush=True)
                with suppress(KeyboardInterrupt):
                    threading.Event().wait()
            return 1 if shortfalls else 0
    except (DemoError, ConfigurationError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def interrupt(*_: object) -> None:
    """Take SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


class DemoError(Exception):
    """The demo can't go on; the message says why."""


@dataclass(kw_only=True)
class HotLoad:
    """Seconds from the end of one adapter's upload."""

    name: str
    ready_s: float
    first_token_s: float


@dataclass(kw_only=True)
class Measured:
    """What the demo measured, as `--json` writes it."""

    adapters: list[HotLoad] = field(default_factory=list)
    engine_pids_before: list[int] = field(default_factory=list)
    engine_pids_after: list[int] = field(default_factory=list)
    stream_longest_gap_s: float = 0.0
    stream_tokens: int = 0
    answers: dict[str, str] = field(default_factory=dict)

    def shortfalls(self) -> list[str]:
        """What did not hold, a sentence each."""
        found = [
            f"{each.name}: the first token came {each.first_token_s:.2f} s after the upload"
            for each in self.adapters
            if each.first_token_s >= HOT_LOAD_LIMIT_S
        ]
        if self.engine_pids_before != self.engine_pids_after:
            found.append("the engine's processes changed")
        if self.stream_tokens != STREAM_TOKENS:
            found.append(f"the stream had {self.stream_tokens} tokens, not {STREAM_TOKENS}")
        base = self.answers.get(BASE_MODEL)
        found += [
            f"{requested_model} answers as the base model does"
            for requested_model, answer in self.answers.items()
            if requested_model != BASE_MODEL and answer == base
        ]
        return found


@contextmanager
def serving(settings: "Settings") -> Iterator[str]:
    """scripts/serve as a process of its own, up and ready; its URL.

    Raises DemoError when it ends or is not ready in time.
    """
    from stack.installation import end_with_parent
    from stack.serve import is_ready

    settings.lora_data_dir.mkdir(parents=True, exist_ok=True)
    log = settings.lora_data_dir / "serve.log"
    print(f"demo: starting Triton, adapter_sync and the gateway (log: {log})", flush=True)
    started = time.monotonic()
    log.unlink(missing_ok=True)
    with log.open("a") as output:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "stack.serve"],
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for this process, which then stops the server.
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - no thread has been started yet
        )
    try:
        while not is_ready(settings):
            time.sleep(READY_CHECK_PERIOD_S)
            if server.poll() is not None:
                raise DemoError(f"the server did not start:\n{last_words(log)}")
            if time.monotonic() - started > START_DEADLINE_S:
                raise DemoError(f"the server is not ready after {START_DEADLINE_S} s: see {log}")
        print(f"demo: ready after {time.monotonic() - started:.0f} s", flush=True)
        yield f"http://{settings.gateway_host}:{settings.gateway_port}"
    finally:
        print("demo: stopping", flush=True)
        server.terminate()
        try:
            server.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            server.kill()


def last_words(log: Path) -> str:
    """What the server said of why it did not start."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join([line for line in lines if line.startswith("serve:")] or lines[-20:])


def make_key(settings: "Settings") -> str:
    """A key of the demo's tenant, which is made at the first time."""
    from adapter_sync.errors import TenantExistsError
    from adapter_sync.registry import Registry
    from adapter_sync.tiers import load_tiers

    registry = Registry.open(settings.registry_url, load_tiers(settings.lora_tiers_file))
    try:
        with suppress(TenantExistsError):
            registry.create_tenant(TENANT, "shared")
        return registry.create_key(TENANT)
    finally:
        registry.close()


def show(settings: "Settings", url: str, key: str) -> Measured:
    """The demo itself. Raises DemoError when a step fails."""
    import openai

    api = api_client(url, key)
    client = openai.OpenAI(
        base_url=f"{url}/v1",
        api_key=key,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )
    remove_earlier_adapters(api)
    measured = Measured(engine_pids_before=engine_pids(settings))
    print(f"demo: uploading {len(FIELDS)} adapters while {BASE_MODEL} streams", flush=True)
    stream = BackgroundStream(client)
    stream.wait_for_first_token()
    for name in FIELDS:
        hot_load = upload_and_ask(api, client, name)
        measured.adapters.append(hot_load)
        print(
            f"demo: {name}: ready {hot_load.ready_s:.2f} s, first token "
            f"{hot_load.first_token_s:.2f} s after the end of the upload",
            flush=True,
        )
    if stream.has_ended():
        raise DemoError("the stream had ended before the last adapter answered")
    stream.join()
    measured.stream_longest_gap_s = stream.longest_gap_s
    measured.stream_tokens = stream.tokens
    measured.engine_pids_after = engine_pids(settings)
    print(
        f"demo: the stream went on: {stream.tokens} tokens, longest gap "
        f"{stream.longest_gap_s:.2f} s; engine processes {measured.engine_pids_after}",
        flush=True,
    )
    measured.answers = ask_everyone(client)
    return measured


def api_client(url: str, key: str) -> "httpx.Client":
    """A client of the adapters' API. A proxy of the environment is for elsewhere."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"}
    return httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=120)


def remove_earlier_adapters(api: "httpx.Client") -> None:
    """Delete what an earlier demo left in this data folder."""
    listed = api.get("/v1/adapters", params={"limit": 100})
    for adapter in listed.raise_for_status().json()["data"]:
        api.delete(f"/v1/adapters/{adapter['id']}").raise_for_status()


def engine_pids(settings: "Settings") -> list[int]:
    """The processes of the base model's engine, as its companion tells them."""
    from adapter_sync.lora_map import companion_name
    from adapter_sync.triton_control import ExplicitControl

    url = f"{settings.triton_host}:{settings.triton_http_port}"
    control = ExplicitControl(url, headers=settings.triton_headers)
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        status = control.status(companion_name(BASE_MODEL))
        if status is not None and status.pids:
            return list(status.pids)
        time.sleep(0.2)
    raise DemoError(f"{companion_name(BASE_MODEL)} is not there")


class BackgroundStream:
    """A long answer of the base model, read in a thread, and the gaps between its tokens."""

    def __init__(self, client: "openai.OpenAI") -> None:
        self.tokens = 0
        self.longest_gap_s = 0.0
        self._client = client
        self._first = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def wait_for_first_token(self) -> None:
        """Return when the stream runs. Raises DemoError when it does not."""
        if not self._first.wait(60) or self._error is not None:
            raise DemoError(f"the base model's stream did not start: {self._error}")

    def has_ended(self) -> bool:
        """Whether the stream is over."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for the stream's end. Raises DemoError when it broke."""
        self._thread.join()
        if self._error is not None:
            raise DemoError(f"the base model's stream broke: {self._error}")

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - told by join()
            self._error = error
        self._first.set()

    def _read(self) -> None:
        chunks = self._client.chat.completions.create(
            model=BASE_MODEL,
            messages=[{"role": "user", "content": "Tell me a long story about a lighthouse."}],
            max_tokens=STREAM_TOKENS,
            temperature=0,
            stream=True,
            logprobs=True,
            extra_body={"ignore_eos": True},
        )
        last: float | None = None
        for chunk in chunks:
            for choice in chunk.choices:
                # Counted as they come, not as the engine says it sent them.
                received = choice.logprobs.content if choice.logprobs else None
                self.tokens += len(received or ())
            if chunk.choices and chunk.choices[0].delta.content:
                now = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now - last if last else 0.0)
                last = now
                self._first.set()


class TimedFile(io.FileIO):
    """A file to upload that notes when its last byte was read: the end of the upload."""

    ended_at = 0.0

    def read(self, size: int | None = -1) -> bytes:
        """Bytes for the client to send."""
        self.ended_at = time.monotonic()
        return super().read(size) or b""


def upload_and_ask(api: "httpx.Client", client: "openai.OpenAI", name: str) -> HotLoad:
    """Upload one adapter and ask it at once. Raises DemoError when it does not become ready."""
    from stack.installation import ROOT

    folder = ROOT / "examples" / name / "adapter"
    weights = TimedFile(folder / "adapter_model.safetensors")
    answer = api.post(
        "/v1/adapters/upload",
        data={"name": name, "base_model": BASE_MODEL},
        files={
            "config": ("adapter_config.json", (folder / "adapter_config.json").read_bytes()),
            "file": ("adapter_model.safetensors", weights),
        },
    )
    ready_s = time.monotonic() - weights.ended_at
    if answer.is_error or answer.json()["status"] != "ready":
        raise DemoError(f"{name} did not become ready: {answer.text}")
    chunks = client.chat.completions.create(
        model=f"{BASE_MODEL}:{name}",
        messages=[{"role": "user", "content": "Hello!"}],
        max_tokens=4,
        stream=True,
    )
    for chunk in chunks:
        if chunk.choices and chunk.choices[0].delta.content:
            return HotLoad(
                name=name,
                ready_s=round(ready_s, 3),
                first_token_s=round(time.monotonic() - weights.ended_at, 3),
            )
    raise DemoError(f"{name} answered nothing")


def ask_everyone(client: "openai.OpenAI") -> dict[str, str]:
    """Ask the base and each adapter the same questions, and print the answers side by side."""
    from rich.console import Console
    from rich.table import Table

    models = [BASE_MODEL, *(f"{BASE_MODEL}:{name}" for name in FIELDS)]
    questions = [question_of(name) for name in FIELDS]

    def ask(pair: tuple[str, str]) -> str:
        completion = client.chat.completions.create(
            model=pair[0],
            messages=[{"role": "user", "content": pair[1]}],
            max_tokens=ANSWER_TOKENS,
            temperature=0,
        )
        return completion.choices[0].message.content or ""

    pairs = [(model, question) for question in questions for model in models]
    with ThreadPoolExecutor(len(models)) as pool:
        answers = dict(zip(pairs, pool.map(ask, pairs), strict=True))
    console = Console(width=None if sys.stdout.isatty() else SCREEN_WIDTH)
    for question in questions:
        table = Table(*models, title=question, title_justify="left", show_lines=True)
        table.add_row(*(answers[model, question] for model in models))
        console.print(table)
    return {model: "\n\n".join(answers[model, each] for each in questions) for model in models}


def question_of(name: str) -> str:
    """The first of the questions that the adapter was not trained on."""
    from stack.installation import ROOT

    lines = (ROOT / "examples" / name / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    question: str = json.loads(lines[0])["question"]
    return question


def curl_lines(url: str, key: str) -> str:
    """Commands that work when pasted into another terminal."""
    listed = api_client(url, key).get("/v1/adapters").raise_for_status().json()["data"]
    adapter_id = listed[0]["id"]
    return f"""
It stays up until Ctrl-C. Paste into another terminal, in the project's folder:

  export LORA_URL={url} LORA_KEY={key}

  curl $LORA_URL/v1/models -H "Authorization: Bearer $LORA_KEY"

  curl $LORA_URL/v1/chat/completions -H "Authorization: Bearer $LORA_KEY" \\
    -H "Content-Type: application/json" \\
    -d '{{"model": "{BASE_MODEL}:finance", "max_tokens": 80,
         "messages": [{{"role": "user", "content": "What is an index fund?"}}]}}'

  curl -X POST $LORA_URL/v1/adapters/upload -H "Authorization: Bearer $LORA_KEY" \\
    -F "name=my-finetuned-v3" -F "base_model={BASE_MODEL}" \\
    -F "file=@examples/legal/adapter/adapter_model.safetensors"

  curl $LORA_URL/v1/adapters -H "Authorization: Bearer $LORA_KEY"

  curl -X DELETE $LORA_URL/v1/adapters/{adapter_id} -H "Authorization: Bearer $LORA_KEY"
"""


if __name__ == "__main__":
    sys.exit(main())
