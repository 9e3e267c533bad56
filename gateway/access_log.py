"""One log line a request, with what went wrong in it and how long it took; the last net for errors.

`scope["state"]["log_fields"]` takes more fields, `scope["state"]["error"]` the error answered.
"""

import asyncio
import time
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.errors import CLIENT_CLOSED_REQUEST, ServerStoppingError, answer_for

_UNEXPECTED = 500
_PROCESSING_HEADER = "openai-processing-ms"


class AccessLog:
    """ASGI middleware. An error that nobody expected becomes a 500 in the OpenAI envelope here.

    Starlette's own handler for those runs outside every middleware and would lose x-request-id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = structlog.get_logger(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, then log."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"]["log_fields"] = {}
        answered = _Answered(send)
        try:
            await self._app(scope, receive, answered.send)
        except asyncio.CancelledError:
            # The server stops, and this request has taken longer than it waits.
            if answered.status is None:
                answer = answer_for(ServerStoppingError(), path=scope["path"])
                await answer.response()(scope, receive, answered.send)
            raise
        except Exception as error:  # noqa: BLE001  # logged below, with its traceback
            scope["state"]["error"] = error
            if answered.status is None:
                answer = answer_for(error, path=scope["path"])
                await answer.response()(scope, receive, answered.send)
        finally:
            self._write_line(scope, answered)

    def _write_line(self, scope: Scope, answered: "_Answered") -> None:
        status = answered.status or CLIENT_CLOSED_REQUEST
        fields: dict[str, Any] = {
            "request_id": scope["state"]["request_id"],
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "duration_ms": answered.elapsed_ms(),
            "first_byte_ms": answered.first_byte_ms,
            "sent_bytes": answered.sent_bytes,
            **scope["state"]["log_fields"],
        }
        error = scope["state"].get("error")
        if scope["path"].startswith(("/health", "/ping")):
            # Probes ask every second or so: what they learn is in their answers.
            self._log.debug("request.answered", **fields)
        elif error is None:
            self._log.info("request.answered", **fields)
        elif (error_status := answer_for(error).status) == _UNEXPECTED:
            self._log.error("request.answered", **fields, exc_info=error)
        elif error_status > _UNEXPECTED:
            self._log.warning("request.answered", **fields, error=str(error))
        else:
            self._log.info("request.answered", **fields, error=str(error))


class _Answered:
    """What was sent so far."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = time.monotonic()
        self.status: int | None = None
        self.first_byte_ms: int | None = None
        self.sent_bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)[_PROCESSING_HEADER] = str(self.elapsed_ms())
        elif body := message.get("body"):
            if self.first_byte_ms is None:
                self.first_byte_ms = self.elapsed_ms()
            self.sent_bytes += len(body)
        await self._send(message)

    def elapsed_ms(self) -> int:
        return round((time.monotonic() - self._started) * 1000)
