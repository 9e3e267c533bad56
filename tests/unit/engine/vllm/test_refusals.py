from dataclasses import dataclass, field
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError

from engine.vllm.refusals import refuse_bad_values


@dataclass(slots=True)
class Request:
    request_id: str
    top_k: int = 1


@dataclass(slots=True)
class Engine:
    """As AsyncLLM, which registers a request and then sends it."""

    registered: set[str] = field(default_factory=set)
    add_request: Any = None
    _add_request: Any = None

    def __post_init__(self) -> None:
        self.add_request, self._add_request = self._convert, self._register_and_send

    async def _convert(self, request: Request) -> str:
        await self._add_request(request, "prompt")
        return request.request_id

    async def _register_and_send(self, request: Request, _prompt: str) -> None:
        self.registered.add(request.request_id)
        if request.top_k >= 2**64:
            raise OverflowError("can't serialize ints")
        if request.top_k < 0:
            raise KeyError(request.top_k)

    async def abort(self, request_id: str, *, internal: bool) -> None:
        assert internal
        self.registered.discard(request_id)


@pytest.fixture
def engine() -> Engine:
    made = Engine()
    refuse_bad_values(made)
    return made


async def test_what_can_be_sent_is_sent(engine: Engine) -> None:
    assert await engine.add_request(Request("a")) == "a"
    assert engine.registered == {"a"}


async def test_a_value_that_can_not_be_sent_is_the_clients_fault_and_leaves_nothing(
    engine: Engine,
) -> None:
    with pytest.raises(VLLMValidationError, match="can't serialize ints"):
        await engine.add_request(Request("a", top_k=2**64))
    assert engine.registered == set()


async def test_any_other_error_stays_what_it_is_and_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(KeyError):
        await engine.add_request(Request("a", top_k=-1))
    assert engine.registered == set()
