"""The headers and header parameters that the document speaks of."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

RATE_LIMIT_HEADERS = tuple(
    f"x-ratelimit-{part}-{kind}"
    for kind in ("requests", "tokens")
    for part in ("limit", "remaining", "reset")
)
_NUMBER = MappingProxyType({"type": "string", "pattern": "^[0-9]+$"})
_DURATION = MappingProxyType({"type": "string", "pattern": "^([0-9]+ms|([0-9]+m)?[0-9]+s)$"})
_HEADERS: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "x-request-id": (
            "The request's own when that is 1 to 128 of A-Z a-z 0-9 . _ -, else a new one.",
            {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        ),
        "openai-processing-ms": ("How long the answer took to begin.", _NUMBER),
        "retry-after": ("Seconds to wait before asking again.", _NUMBER),
        "retry-after-ms": ("The same in milliseconds.", _NUMBER),
        "x-should-retry": ("Tells OpenAI's clients not to ask again.", {"const": "false"}),
        "www-authenticate": ("How to authenticate.", {"const": "Bearer"}),
        "etag": (
            "The adapter's state, which changes with each revision; for If-Match.",
            {"type": "string", "pattern": '^"[0-9a-f]{32}"$'},
        ),
        "location": ("Where the new thing is.", {"type": "string", "pattern": "^/"}),
        **{
            name: (
                "The tier's limit a minute, what is left of it, and when nothing counts any more.",
                _DURATION if "reset" in name else _NUMBER,
            )
            for name in RATE_LIMIT_HEADERS
        },
    }
)
REQUEST_ID: Mapping[str, Any] = MappingProxyType(
    {
        "name": "x-request-id",
        "in": "header",
        "description": "The request's name in the logs; the answer has it too.",
        "schema": {"type": "string"},
    }
)
REQUEST_TIMEOUT: Mapping[str, Any] = MappingProxyType(
    {
        "name": "x-request-timeout",
        "in": "header",
        "description": "End the request when it is not finished after so many seconds.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "example": 20,
    }
)
IF_MATCH: Mapping[str, Any] = MappingProxyType(
    {
        "name": "If-Match",
        "in": "header",
        "description": "Only if the adapter still has one of these ETags; `*` is any.",
        "schema": {"type": "string"},
    }
)
PREFER: Mapping[str, Any] = MappingProxyType(
    {
        "name": "Prefer",
        "in": "header",
        "description": "`wait=N`: answer when the adapter is ready, or after N seconds, 5 without "
        "it and 60 at most (RFC 7240). Other preferences are ignored.",
        "schema": {"type": "string"},
        "example": "wait=30",
    }
)


def header_objects(always: Iterable[str], sometimes: Iterable[str] = ()) -> dict[str, Any]:
    """OpenAPI's header objects, by name."""
    required = dict.fromkeys(always, True)
    wanted = dict.fromkeys(sometimes, False) | required
    return {
        name: {"description": _HEADERS[name][0], "schema": dict(_HEADERS[name][1])}
        | ({"required": True} if is_required else {})
        for name, is_required in sorted(wanted.items())
    }
