"""Every field of vLLM's request classes is in the docs: honoured, ignored or refused."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from gateway.inference.endpoints import INFERENCE_ENDPOINTS
from gateway.inference.fields import FORBIDDEN_FIELDS
from tests.stack_process import ROOT

PAGE = (ROOT / "docs" / "openai-api.md").read_text(encoding="utf-8")
_, _, FIELDS = PAGE.partition("## Fields")
FIELDS, _, _ = FIELDS.partition("## Time-outs")
TABLE, _, HONOURED = FIELDS.partition("<details>")
# What OpenAI's API or ours has and vLLM's classes have not.
NOT_VLLMS = {"conversation", "lora_name", "best_of", "safety_identifier"} | {
    *("functions", "function_call", "audio", "modalities", "prediction"),
    *("web_search_options", "verbosity"),
}
# Honoured by one endpoint and refused by another, or refused in part.
BOTH = {"prompt", "tools"}
PATHS = {endpoint.path for endpoint in INFERENCE_ENDPOINTS}


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def cells(text: str) -> list[list[str]]:
    return [line.split("|") for line in text.splitlines() if line.startswith("| `")]


def rows(kind: str) -> set[str]:
    return {name for row in cells(TABLE) if row[2].strip() == kind for name in names(row[1])}


def honoured(path: str) -> set[str]:
    return {name for row in cells(HONOURED) if f"`{path}`" in row[1] for name in names(row[2])}


@pytest.fixture(scope="module")
def vllms_fields() -> Mapping[str, set[str]]:
    """Of the request's class of each path."""
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

    classes: Mapping[str, tuple[Any, ...]] = {
        "/v1/chat/completions": (ChatCompletionRequest,),
        "/v1/completions": (CompletionRequest,),
        "/v1/responses": (ResponsesRequest,),
        "/v1/messages": (AnthropicMessagesRequest,),
        "/v1/messages/count_tokens": (AnthropicCountTokensRequest,),
        "/v1/embeddings": (EmbeddingChatRequest, EmbeddingCompletionRequest),
        "/tokenize": (TokenizeChatRequest, TokenizeCompletionRequest),
        "/detokenize": (DetokenizeRequest,),
    }
    return {
        path: {name for cls in each for name in cls.model_fields} for path, each in classes.items()
    }


@pytest.mark.parametrize("path", sorted(PATHS))
def test_the_docs_know_every_field_that_vllm_knows_of_an_endpoint(
    vllms_fields: Mapping[str, set[str]], path: str
) -> None:
    left_out = rows("refused") | rows("ignored")
    assert honoured(path) - BOTH == vllms_fields[path] - left_out
    assert honoured(path) <= vllms_fields[path]


def test_the_docs_leave_out_nothing_that_nobody_asks_for(
    vllms_fields: Mapping[str, set[str]],
) -> None:
    known = set().union(*vllms_fields.values())
    assert rows("refused") | rows("ignored") <= known | NOT_VLLMS
    assert not rows("ignored") & FORBIDDEN_FIELDS


def test_the_docs_name_every_field_that_no_client_may_set() -> None:
    assert rows("refused") >= FORBIDDEN_FIELDS
