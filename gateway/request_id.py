"""Every answer has an x-request-id: the client's own when it is a valid one, else a new one."""

import re
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADER = "x-request-id"
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestId:
    """ASGI middleware; `scope["state"]["request_id"]` is the id.

    Pure ASGI, as all here: BaseHTTPMiddleware costs half as much again for each streamed token.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, adding the header to the answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = accepted_request_id(Headers(scope=scope).get(_HEADER))
        scope["state"]["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


def accepted_request_id(offered: str | None) -> str:
    """The client's id, or a new one of 32 hex digits."""
    if offered is not None and _VALID.fullmatch(offered) is not None:
        return offered
    return uuid.uuid4().hex
