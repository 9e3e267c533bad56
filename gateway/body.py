"""Reading request bodies: counted, and given up when nothing comes any more."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from starlette.requests import Request

from gateway.errors import InvalidRequestError, RequestTimeoutError, RequestTooLargeError


async def read_body(request: Request, *, max_bytes: int, idle_s: float) -> bytes:
    """The whole body. Raises RequestTooLargeError, as soon as it can, and RequestTimeoutError."""
    if (content_length(request) or 0) > max_bytes:
        raise RequestTooLargeError(limit_bytes=max_bytes)
    body = bytearray()
    async with aclosing(body_chunks(request, idle_s=idle_s)) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > max_bytes:
                raise RequestTooLargeError(limit_bytes=max_bytes)
    return bytes(body)


async def body_chunks(request: Request, *, idle_s: float) -> AsyncGenerator[bytes]:
    """The body as it comes. Raises RequestTimeoutError, and ClientDisconnect of Starlette."""
    async with aclosing(request.stream()) as stream:
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    chunk = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                raise RequestTimeoutError(idle_s=idle_s) from error
            yield chunk


async def joined(chunks: AsyncIterator[bytes], size_bytes: int) -> AsyncIterator[bytes]:
    """The same bytes in pieces of at least `size_bytes`, but for the last."""
    piece = bytearray()
    async for chunk in chunks:
        piece += chunk
        if len(piece) >= size_bytes:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)


def content_length(request: Request) -> int | None:
    """The announced length in bytes, None when the body comes in chunks."""
    announced = request.headers.get("content-length")
    if announced is None:
        return None
    if not announced.isdecimal():
        raise InvalidRequestError(f"'{announced}' is not a content length.", param=None)
    return int(announced)
