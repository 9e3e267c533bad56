"""How many tokens a request has used: counted where vLLM's engine hands them to its OpenAI layer.

Imports neither vllm nor anything of the project.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

BYTES_OF_A_TOKEN = 4
"""About."""
Generate: TypeAlias = Callable[..., AsyncGenerator[Any, None]]
AddRequest: TypeAlias = Callable[..., Awaitable[Any]]


class TokenUsage(NamedTuple):
    """What a request has used so far."""

    prompt_tokens: int
    completion_tokens: int


def estimated_tokens(body: Any) -> int:
    """About as many as the texts of a request, which vLLM has not read yet; a number is a token."""
    size, left = 0, [body]
    while left:
        match left.pop():
            case str(text):
                size += len(text.encode("utf-8", "surrogatepass"))
            case int():
                size += BYTES_OF_A_TOKEN
            case dict(values):
                left.extend(values.values())
            case list(values):
                left.extend(values)
    return size // BYTES_OF_A_TOKEN


class TokenCounter:
    """A request's tokens; `on_prompt` is called when the engine has taken a prompt of it.

    A request has several prompts, each under an id of its own, unless it is `one_prompt`: beam
    search asks for its own anew at every step.
    """

    def __init__(self, on_prompt: Callable[[], None], *, one_prompt: bool = False) -> None:
        self._on_prompt = on_prompt
        self._one_prompt = one_prompt
        self._taken: set[str] = set()
        self.prompt_tokens = 0
        self.completion_tokens = 0

    @property
    def usage(self) -> TokenUsage:
        """The count now."""
        return TokenUsage(self.prompt_tokens, self.completion_tokens)

    def take_prompt(self, prompt_id: str, prompt_tokens: int) -> None:
        """Count a prompt, once."""
        if not prompt_tokens or prompt_id in self._taken or (self._one_prompt and self._taken):
            return
        self._taken.add(prompt_id)
        self.prompt_tokens += prompt_tokens
        self._on_prompt()


COUNTER: ContextVar[TokenCounter] = ContextVar("token_counter")
"""Of the current request; the tasks that vLLM makes for it inherit it."""


def counting_prompts(add_request: AddRequest) -> AddRequest:
    """VLLM's AsyncLLM.add_request, which also counts the prompt once the engine has it."""

    async def add_request_counted(request_id: str, prompt: Any, *rest: Any, **options: Any) -> Any:
        queue = await add_request(request_id, prompt, *rest, **options)
        token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
        if token_ids is not None and (counter := COUNTER.get(None)) is not None:
            counter.take_prompt(request_id, len(token_ids))
        return queue

    return add_request_counted


def counting_completions(generate: Generate, *, delta_kind: object) -> Generate:
    """VLLM's AsyncLLM.generate, which also counts; `delta_kind` is RequestOutputKind.DELTA.

    A stream's outputs each hold the new tokens. What is not a stream comes as one output at its
    end, or as ones that each hold all tokens so far.
    """

    def generate_counted(
        prompt: Any, sampling_params: Any, request_id: str, *rest: Any, **options: Any
    ) -> AsyncGenerator[Any, None]:
        outputs = generate(prompt, sampling_params, request_id, *rest, **options)
        counter = COUNTER.get(None)
        if counter is None:
            return outputs
        is_delta = sampling_params.output_kind is delta_kind
        return _counted(outputs, counter, request_id, is_delta=is_delta)

    return generate_counted


async def _counted(
    outputs: AsyncGenerator[Any, None], counter: TokenCounter, prompt_id: str, *, is_delta: bool
) -> AsyncGenerator[Any, None]:
    counted: dict[int, int] = {}
    # Closed with this one, not when it is collected: that is what aborts it in the engine.
    async with aclosing(outputs):
        async for output in outputs:
            # Prompts in a form that counting_prompts does not know.
            counter.take_prompt(prompt_id, len(output.prompt_token_ids or ()))
            for choice in output.outputs:
                count = len(choice.token_ids)
                if not is_delta:
                    count, counted[choice.index] = count - counted.get(choice.index, 0), count
                counter.completion_tokens += count
            yield output
