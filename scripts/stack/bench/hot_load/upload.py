"""One upload, and what became of it: by the client's own clock, and by the server's log."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import httpx

from adapter_sync.lora_map import adapter_files_folder
from stack.bench.hot_load.adapter import Adapter
from stack.bench.servers import BASE_MODEL, Installation
from stack.child import LOOK_PERIOD_S

WITHIN_S = 60
PIECE_BYTES = 1 << 16
BOUNDARY = "hot-load"
_HANDED_OVER = re.compile(r"lora_map\.handed_over .*took_s=([0-9.]+)")


def upload_and_ask(ours: Installation, adapter: Adapter, name: str) -> dict[str, float]:
    """Seconds of each stage, from the moment when the upload's last byte is sent.

    Returns when the adapter is deleted again, so that the next load waits for nothing of this one.
    Raises RuntimeError when it does not become ready, or stays.
    """
    form = _Form(adapter, name)
    log_begin = ours.log.stat().st_size
    with ours.api() as api:
        api.get("/v1/models").raise_for_status()  # the connection is there
        answer = api.post(
            "/v1/adapters/upload",
            content=iter(form),
            headers={
                "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
                "Prefer": f"wait={WITHIN_S}",
            },
        ).raise_for_status()
        ready_at = time.time()
        uploaded = answer.json()
        if uploaded["status"] != "ready":
            raise RuntimeError(f"{name} did not become ready: {uploaded}")
        read_first_token(api, uploaded["model"])
        answered_at = time.time()
        api.delete(f"/v1/adapters/{uploaded['id']}").raise_for_status()
    _wait_until_gone(ours, uploaded["id"])
    with ours.log.open(encoding="utf-8", errors="replace") as log:
        log.seek(log_begin)
        lines = log.readlines()
    return {
        **stages(lines, uploaded["id"], sent_at=form.sent_at, ready_at=ready_at),
        "first_token": answered_at - ready_at,
    }


def _wait_until_gone(ours: Installation, adapter_id: str) -> None:
    """Its files go last, when the engine has forgotten it."""
    folder = adapter_files_folder(ours.settings.model_repository, BASE_MODEL)
    deadline = time.monotonic() + WITHIN_S
    while any(folder.glob(f"{adapter_id}*")):
        if time.monotonic() > deadline:
            raise RuntimeError(f"{adapter_id} is still in {folder}, {WITHIN_S} s after its delete")
        time.sleep(LOOK_PERIOD_S)


def stages(
    lines: Sequence[str], adapter_id: str, *, sent_at: float, ready_at: float
) -> dict[str, float]:
    """The seconds between `sent_at` and `ready_at` (Unix), told apart by the server's log.

    `receive`: the rest of the body, hashed. `validate`: the checks. `place`: onto the disk, into
    the registry, noticed by adapter_sync, linked into Triton's repository. `commit`: Triton's load
    of the companion without `engine`, in which vLLM reads the adapter in. `ready`: the answer.
    """
    events = list(_events(lines))
    accepted = _first(events, "adapter.accepted", adapter_id)
    installed = _first(events, "adapter.installed", adapter_id)
    rest = events[events.index(installed) :]
    committed_at = _at(_first(rest, "lora_map.committed"))
    engine_s = _first(rest, "lora_map.handed_over")["took_s"]
    accepted_at, installed_at = _at(accepted), _at(installed)
    return {
        "receive": accepted_at - accepted["check_s"] - accepted["store_s"] - sent_at,
        "validate": accepted["check_s"],
        "place": accepted["store_s"] + installed_at - accepted_at,
        "commit": committed_at - installed_at - engine_s,
        "engine": engine_s,
        "ready": ready_at - committed_at,
    }


def _events(lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """What the gateway and adapter_sync log, and the companion's words in Triton's log."""
    for line in lines:
        if line.startswith("{"):
            yield json.loads(line)
        elif handed_over := _HANDED_OVER.search(line):
            yield {"event": "lora_map.handed_over", "took_s": float(handed_over[1])}


def _first(
    events: Sequence[dict[str, Any]], event: str, adapter_id: str | None = None
) -> dict[str, Any]:
    return next(
        each
        for each in events
        if each["event"] == event and adapter_id in (None, each.get("adapter_id"))
    )


def _at(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(event["timestamp"]).timestamp()


class _Form:
    """The upload's body, piece by piece; `sent_at` is when the last piece had been taken."""

    def __init__(self, adapter: Adapter, name: str) -> None:
        self._adapter = adapter
        self._name = name
        self.sent_at = 0.0

    def __iter__(self) -> Iterator[bytes]:
        yield self._field("name", self._name.encode())
        yield self._field("base_model", BASE_MODEL.encode())
        yield self._field("config", self._adapter.config.read_bytes(), file=True)
        yield self._head("file", file=True)
        with self._adapter.weights.open("rb") as weights:
            while piece := weights.read(PIECE_BYTES):
                yield piece
        yield f"\r\n--{BOUNDARY}--\r\n".encode()
        self.sent_at = time.time()

    def _field(self, name: str, value: bytes, *, file: bool = False) -> bytes:
        return self._head(name, file=file) + value + b"\r\n"

    def _head(self, name: str, *, file: bool) -> bytes:
        filename = f'; filename="{name}"' if file else ""
        return (
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{filename}\r\n\r\n'
        ).encode()


def read_first_token(api: httpx.Client, model: str) -> None:
    """Ask a model for one token, and return when it is there."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 1,
        "stream": True,
    }
    with api.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                return
