"""Which prompts vLLM reads before others: a number with each request, on its way to the scheduler.

Imports neither vllm nor anything of the project. Of vLLM's priorities a lower one comes first
(`--scheduling-policy priority`).
"""

from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

FIRST, OTHERS = -1, 0
"""Of a tenant that has nothing in the engine yet, while others are about; and of all the rest."""
PRIORITIES: ContextVar[Iterator[int]] = ContextVar("priorities")
"""Of the current request's prompts, OTHERS when there are no more: it may have several, and beam
search asks again at every step. The tasks that vLLM makes for it inherit the one iterator."""


def with_priority(add_request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """VLLM's AsyncLLM.add_request, with the current request's priority in place of a client's."""

    async def add_request_with_priority(*arguments: Any, **options: Any) -> Any:
        priority = next(PRIORITIES.get(iter(())), OTHERS)
        return await add_request(*arguments, **(options | {"priority": priority}))

    return add_request_with_priority
