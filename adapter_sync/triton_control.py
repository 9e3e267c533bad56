"""Triton's side of the reconciler: commit a companion's map, and ask how the adapters fare.

The only module here that speaks to Triton, by its HTTP API. Each call has a connection of its own,
so any thread may make it. Foreign errors are mapped in `_call` and `_status`.
https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/protocol/README.html
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from types import MappingProxyType
from typing import Any, Protocol

from adapter_sync.engine_status import EngineAdapter, EngineStatus
from adapter_sync.errors import TritonRefusedError, TritonUnavailableError
from adapter_sync.lora_map import STATUS_QUERY

LOAD_DEADLINE_S = 120.0
STATUS_DEADLINE_S = 30.0
POLL_DEADLINE_S = 60.0
POLL_PERIOD_S = 0.1
_QUESTION = json.dumps(
    {"inputs": [{"name": "query", "datatype": "BYTES", "shape": [1], "data": [STATUS_QUERY]}]}
).encode()


class TritonControl(Protocol):
    """How a written map reaches the engine."""

    def commit(self, companion: str, revision: int) -> None:
        """Return when Triton has taken the map over.

        Raises TritonUnavailableError, or TritonRefusedError with Triton's words.
        """

    def status(self, companion: str) -> EngineStatus | None:
        """How the adapters fare; None while Triton does not have the companion.

        Raises TritonUnavailableError, or TritonRefusedError with Triton's words.
        """


class ExplicitControl:
    """`--model-control-mode=explicit`: the load call is the commit.

    https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_management.md
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        load_deadline_s: float = LOAD_DEADLINE_S,
        status_deadline_s: float = STATUS_DEADLINE_S,
    ) -> None:
        self._server = _Server(url=url, headers=headers)
        self._load_deadline_s = load_deadline_s
        self._status_deadline_s = status_deadline_s

    def commit(self, companion: str, revision: int) -> None:  # noqa: ARG002
        """Load the companion anew; the earlier one serves until this one has handed over."""
        path = f"/v2/repository/models/{companion}/load"
        _checked(_call(self._server, "POST", path, deadline_s=self._load_deadline_s))

    def status(self, companion: str) -> EngineStatus | None:
        """How the adapters fare."""
        return _status(self._server, companion, self._status_deadline_s)


class PollControl:
    """`--model-control-mode=poll`: Triton finds the map itself; commit waits until it has."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        deadline_s: float = POLL_DEADLINE_S,
        status_deadline_s: float = STATUS_DEADLINE_S,
    ) -> None:
        self._server = _Server(url=url, headers=headers)
        self._deadline_s = deadline_s
        self._status_deadline_s = status_deadline_s

    def commit(self, companion: str, revision: int) -> None:
        """Wait for Triton's next look at its repository."""
        deadline = time.monotonic() + self._deadline_s
        refusal = ""
        while time.monotonic() < deadline:
            try:
                status = self.status(companion)
            except TritonRefusedError as error:
                # A companion whose process has died, until Triton starts it anew.
                status, refusal = None, f" It says: {error}"
            if status is not None and status.companion_revision >= revision:
                return
            time.sleep(POLL_PERIOD_S)
        raise TritonUnavailableError(
            f"Triton has not taken revision {revision} of {companion} over within "
            f"{self._deadline_s:.0f} s. Does it run with --model-control-mode=poll?{refusal}"
        )

    def status(self, companion: str) -> EngineStatus | None:
        """How the adapters fare."""
        return _status(self._server, companion, self._status_deadline_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """Triton's HTTP port, and what is sent with every request."""

    url: str
    headers: Mapping[str, str]


def _status(server: _Server, companion: str, deadline_s: float) -> EngineStatus | None:
    model = f"/v2/models/{companion}"
    status, _ = _call(server, "GET", f"{model}/ready", deadline_s=deadline_s)
    if status != HTTPStatus.OK:
        return None
    answer = _checked(_call(server, "POST", f"{model}/infer", _QUESTION, deadline_s=deadline_s))
    try:
        (output,) = json.loads(answer)["outputs"]
        return _engine_status(json.loads(output["data"][0]))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise TritonRefusedError(f"{companion} answers what is no status: {error!r}") from error


def _engine_status(document: Mapping[str, Any]) -> EngineStatus:
    base = document["base_model"] or {}
    # What a base model whose engine has died tells of its adapters is worth nothing.
    alive = base.get("alive", False)
    return EngineStatus(
        companion_revision=document["revision"],
        revision=base["revision"] if alive else None,
        settled_revision=base["settled_revision"] if alive else 0,
        adapters={
            name: EngineAdapter(
                state=each["state"], reason=each["reason"], residency=each["residency"]
            )
            for name, each in (base["adapters"] if alive else {}).items()
        },
        pids=tuple(base.get("pids", ())),
        in_flight=base.get("in_flight", 0),
        max_loras=base.get("max_loras", 0),
        held=base.get("held", 0),
    )


def _call(
    server: _Server, method: str, path: str, body: bytes | None = None, *, deadline_s: float
) -> tuple[int, bytes]:
    """The answer's HTTP status and body. Raises TritonUnavailableError."""
    connection = HTTPConnection(server.url, timeout=deadline_s)
    try:
        connection.request(method, path, body, dict(server.headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, HTTPException) as error:
        raise TritonUnavailableError(f"Triton does not answer: {error!r}") from error
    finally:
        connection.close()


def _checked(answer: tuple[int, bytes]) -> bytes:
    """The body. Raises TritonRefusedError with Triton's words when the status is an error."""
    status, body = answer
    if status == HTTPStatus.OK:
        return body
    try:
        words = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        words = body.decode(errors="replace")
    raise TritonRefusedError(f"Triton answered {status}: {words}")
