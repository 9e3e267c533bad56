"""What the gateway asks of a base model and gets from it. Imports nothing of Triton."""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from adapter_sync.engine_health import EngineHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What the engine is asked; `body` is the client's own request body.

    `tenant` waits for its turn in the engine, and `weight` is its share among the others.
    """

    endpoint: str
    lora_name: str | None
    served_name: str
    request_id: str
    cache_salt: str
    tenant: str
    weight: int
    body: Mapping[str, Any]


class TokenUsage(NamedTuple):
    """The tokens that a request has used so far."""

    prompt_tokens: int
    completion_tokens: int


class EngineResponse(NamedTuple):
    """A piece of the answer; `status` (HTTP) comes with the first that has bytes.

    `usage` comes when it has grown.
    """

    status: int | None
    payload: bytes
    usage: TokenUsage | None = None


class EngineCall(Protocol):
    """One request being answered."""

    async def read(self, *, within_s: float) -> EngineResponse | None:
        """The next piece, None after the last. Raises EngineTimeoutError, TransientError."""


class EngineClient(Protocol):
    """The way to the base models."""

    def call(
        self, base_model: str, request: EngineRequest
    ) -> AbstractAsyncContextManager[EngineCall]:
        """Ask; leaving the context ends the request in the engine if it still runs."""

    async def is_ready(self, base_model: str, *, within_s: float) -> bool:
        """Whether the base model is loaded. Raises TransientError when Triton does not tell."""

    async def health(self, base_model: str, *, within_s: float) -> EngineHealth:
        """The base model's word on its engine. Raises TransientError when it does not answer."""
