"""What vLLM can't take of a request refuses that request, and leaves nothing of it behind.

vLLM 0.32 checks most fields. A value that only fails on its way to the engine core, an integer of
more than 64 bits say, becomes an error of the server's, and the request stays in vLLM's books for
ever: it registers it before it sends it. So does one whose client leaves in between.
"""

from collections.abc import Awaitable, Callable
from typing import Any

_BAD_VALUES = (TypeError, OverflowError, UnicodeError)


def refuse_bad_values(engine: Any) -> None:
    """Have an AsyncLLM refuse what it can't send, and forget what it did not send."""
    from vllm.exceptions import VLLMValidationError

    engine.add_request = _refusing(engine.add_request, VLLMValidationError)
    engine._add_request = _forgetting(engine._add_request, engine.abort)  # noqa: SLF001 - where it registers


def _refusing(
    add_request: Callable[..., Awaitable[Any]], refusal: type[Exception]
) -> Callable[..., Awaitable[Any]]:
    async def add_request_or_refuse(*arguments: Any, **options: Any) -> Any:
        try:
            return await add_request(*arguments, **options)
        except _BAD_VALUES as error:
            raise refusal(f"A value of the request can't be used: {error}") from error

    return add_request_or_refuse


def _forgetting(
    add_request: Callable[..., Awaitable[None]], abort: Callable[..., Awaitable[None]]
) -> Callable[..., Awaitable[None]]:
    async def add_request_or_forget(request: Any, *rest: Any) -> None:
        try:
            await add_request(request, *rest)
        except BaseException:
            await abort(request.request_id, internal=True)
            raise

    return add_request_or_forget
