"""Which prompts vLLM reads before others: a number with each request, on its way to the scheduler.

Imports neither vllm nor anything of the project. Of vLLM's priorities a lower one comes first
(`--scheduling-policy priority`).
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

FIRST, OTHERS = -1, 0
"""Of a tenant that has nothing in the engine yet, while others are about; and of all the rest."""
PRIORITY: ContextVar[int] = ContextVar("priority", default=OTHERS)
"""Of the current request; the tasks that vLLM makes for it inherit it."""


def with_priority(add_request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """VLLM's AsyncLLM.add_request, with the current request's priority in place of a client's."""

    async def add_request_with_priority(*arguments: Any, **options: Any) -> Any:
        return await add_request(*arguments, **(options | {"priority": PRIORITY.get()}))

    return add_request_with_priority
