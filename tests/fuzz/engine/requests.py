"""Requests made at random, the same ones for the same seed."""

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gateway.inference.fields import FORBIDDEN_FIELDS
from tests.fuzz.engine.running import ADAPTERS, NATIVE, Asked
from tests.fuzz.engine.values import (
    OF_FIELD,
    messages,
    of_field,
    prompt,
    structured,
    text,
    token_ids,
)

FLAGS = (
    *("stream", "exclude_input_in_output", "return_finish_reason", "return_cumulative_logprob"),
    *("return_logprobs", "return_num_input_tokens", "return_num_output_tokens"),
)
GENERATION_ENDPOINTS: Mapping[str, int] = MappingProxyType(
    {
        "chat.completions": 5,
        "completions": 6,
        "responses": 2,
        "messages": 2,
        NATIVE: 4,
        "tokenize": 1,
        "detokenize": 1,
        "messages.count_tokens": 1,
        "embeddings": 1,
    }
)
"""How often each is asked, of the generation model; the other model has EMBEDDING_ENDPOINTS."""
EMBEDDING_ENDPOINTS: Mapping[str, int] = MappingProxyType(
    {"embeddings": 8, "tokenize": 1, "detokenize": 1, "completions": 1, NATIVE: 1}
)
COMBINED: Sequence[Sequence[str]] = (
    ("structured_outputs", "min_tokens"),
    ("structured_outputs", "allowed_token_ids"),
    ("structured_outputs", "logit_bias"),
    ("structured_outputs", "bad_words"),
    ("structured_outputs", "stop_token_ids", "ignore_eos"),
    ("response_format", "tools", "tool_choice"),
    ("tools", "tool_choice", "stream"),
    ("n", "seed", "temperature"),
    ("n", "use_beam_search", "length_penalty"),
    ("use_beam_search", "structured_outputs"),
    ("use_beam_search", "stop", "stream"),
    ("echo", "logprobs", "max_tokens"),
    ("prompt_logprobs", "stream"),
    ("prompt_logprobs", "truncate_prompt_tokens"),
    ("min_tokens", "stop_token_ids"),
    ("allowed_token_ids", "bad_words"),
    ("allowed_token_ids", "stop_token_ids", "min_tokens"),
    ("seed", "temperature", "top_k"),
    ("logprobs", "logprob_token_ids"),
    ("top_logprobs", "logprobs", "return_tokens_as_token_ids"),
    ("repetition_detection", "ignore_eos"),
    ("repetition_penalty", "frequency_penalty", "presence_penalty", "logprobs"),
    ("return_token_ids", "stream", "stream_interval"),
    ("temperature", "top_p", "min_p", "logit_bias"),
)
"""Fields that mean something to each other."""


class Requests:
    """An endless row of requests; `fields` are the names that each endpoint knows."""

    def __init__(
        self,
        seed: int,
        *,
        fields: Mapping[str, Sequence[str]],
        endpoints: Mapping[str, int],
        with_adapters: bool,
    ) -> None:
        self._rng = random.Random(seed)  # noqa: S311 - the same requests for the same seed
        self._fields = fields
        self._endpoints = endpoints
        self._with_adapters = with_adapters

    def next(self) -> Asked:
        """The next request."""
        rng = self._rng
        (endpoint,) = rng.choices([*self._endpoints], weights=[*self._endpoints.values()])
        if endpoint == NATIVE:
            body = self._native()
        else:
            body = self._base(endpoint) | self._some_fields(self._fields[endpoint])
        lora_names = [None, *ADAPTERS.values()] if self._with_adapters else [None]
        return Asked(
            endpoint=endpoint,
            body=body,
            lora_name=rng.choice(lora_names),
            cancel_after_s=round(rng.uniform(0, 4), 3) if rng.random() < 0.25 else None,
            tenant=rng.choice("aaabc"),
        )

    def _base(self, endpoint: str) -> dict[str, Any]:
        rng = self._rng
        body: dict[str, Any] = {"model": "asked"}
        match endpoint:
            case "completions":
                body |= {"prompt": prompt(rng), "max_tokens": rng.randint(1, 24)}
            case "chat.completions":
                body |= {"messages": messages(rng), "max_tokens": rng.randint(1, 24)}
            case "responses":
                asked = messages(rng) if rng.random() < 0.5 else text(rng)
                body |= {"input": asked, "max_output_tokens": rng.randint(1, 24)}
            case "messages" | "messages.count_tokens":
                body |= {"messages": messages(rng), "max_tokens": rng.randint(1, 24)}
            case "detokenize":
                body |= {"tokens": token_ids(rng)}
            case "embeddings":
                body |= {"input": prompt(rng)}
            case "tokenize":
                body |= {"prompt": text(rng)}
        return body

    def _some_fields(self, known: Sequence[str]) -> dict[str, Any]:
        rng = self._rng
        # A field whose values are all refused keeps a request from the engine.
        meant = [name for name in known if name in OF_FIELD] if rng.random() < 0.85 else known
        names = set(rng.sample(meant, min(rng.choice((0, 1, 2, 3, 6)), len(meant))))
        if rng.random() < 0.5:
            names |= {name for name in rng.choice(COMBINED) if name in known}
        # What was made for the base mostly stays, or too few requests would get to the engine.
        if rng.random() < 0.8:
            names -= {"prompt", "messages", "input", "tokens", "model"}
        return {name: self._value(name) for name in sorted(names)}

    def _value(self, name: str) -> Any:
        rng = self._rng
        if name in ("echo", "ignore_eos", "use_beam_search", "include_stop_str_in_output") or (
            name.startswith("return_") and rng.random() < 0.9
        ):
            return rng.random() < 0.8
        return of_field(name, rng)

    def _native(self) -> dict[str, Any]:
        rng = self._rng
        sampling = self._some_fields(self._fields[NATIVE]) | {"max_tokens": rng.randint(1, 24)}
        if rng.random() < 0.2:
            sampling["structured_outputs"] = structured(rng)
        flags = {name: rng.random() < 0.5 for name in FLAGS if rng.random() < 0.3}
        return {"text_input": text(rng), "sampling_parameters": sampling, **flags}


def known_fields() -> Mapping[str, Sequence[str]]:
    """The names of the fields of vLLM's own request classes that a client may set."""
    from vllm.entrypoints.anthropic.protocol import (  # noqa: PLC0415 - it takes seconds
        AnthropicCountTokensRequest,
        AnthropicMessagesRequest,
    )
    from vllm.entrypoints.openai.chat_completion.protocol import (  # noqa: PLC0415
        ChatCompletionRequest,
    )
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest  # noqa: PLC0415
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest  # noqa: PLC0415
    from vllm.entrypoints.pooling.embed.protocol import (  # noqa: PLC0415
        EmbeddingChatRequest,
        EmbeddingCompletionRequest,
    )
    from vllm.entrypoints.serve.tokenize.protocol import (  # noqa: PLC0415
        DetokenizeRequest,
        TokenizeChatRequest,
        TokenizeCompletionRequest,
    )

    from engine.native_generation import SAMPLING_TYPES  # noqa: PLC0415

    classes: Mapping[str, Sequence[Any]] = {
        "chat.completions": (ChatCompletionRequest,),
        "completions": (CompletionRequest,),
        "responses": (ResponsesRequest,),
        "messages": (AnthropicMessagesRequest,),
        "messages.count_tokens": (AnthropicCountTokensRequest,),
        "embeddings": (EmbeddingChatRequest, EmbeddingCompletionRequest),
        "tokenize": (TokenizeChatRequest, TokenizeCompletionRequest),
        "detokenize": (DetokenizeRequest,),
    }
    fields = {
        endpoint: sorted({name for cls in each for name in cls.model_fields} - FORBIDDEN_FIELDS)
        for endpoint, each in classes.items()
    }
    return fields | {NATIVE: sorted(SAMPLING_TYPES)}
