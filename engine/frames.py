"""The bytes of a response to the gateway: frames, each a piece of one request's answer.

gateway/triton_protocol.py reads them; docs/triton.md says what is in them. Imports neither vllm
nor Triton.
"""

import struct

from engine.token_usage import TokenUsage

_HEADER = struct.Struct("<IBHIII")
_FINAL, _HAS_USAGE, _UNKNOWN_CHANNEL = 1, 2, 4
_NO_STATUS = 0
_NOTHING = TokenUsage(0, 0)
HEARTBEAT = _HEADER.pack(0, 0, _NO_STATUS, *_NOTHING, 0)
"""A frame of no request: the base model lives."""


def frame(
    number: int,
    body: bytes = b"",
    *,
    http_status: int | None = None,
    usage: TokenUsage | None = None,
) -> bytes:
    """A piece of the answer to the request of that number on its channel."""
    flags = 0 if usage is None else _HAS_USAGE
    return (
        _HEADER.pack(number, flags, http_status or _NO_STATUS, *usage or _NOTHING, len(body)) + body
    )


def final_frame(number: int) -> bytes:
    """The end of a request's answer."""
    return _HEADER.pack(number, _FINAL, _NO_STATUS, *_NOTHING, 0)


def refusal(number: int) -> bytes:
    """The word that a request was not taken, because its channel is not known here."""
    return _HEADER.pack(number, _FINAL | _UNKNOWN_CHANNEL, _NO_STATUS, *_NOTHING, 0)
