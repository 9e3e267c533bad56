"""Every field of vLLM's request classes is in the docs: honoured, ignored or refused."""

import re

import pytest

from gateway.inference.fields import FORBIDDEN_FIELDS
from tests.stack_process import ROOT

PAGE = (ROOT / "docs" / "openai-api.md").read_text(encoding="utf-8")
_, _, FIELDS = PAGE.partition("## Fields")
FIELDS, _, _ = FIELDS.partition("## Time-outs")
TABLE, _, HONOURED = FIELDS.partition("<details>")
# What OpenAI's API or ours has and vLLM's classes have not.
NOT_VLLMS = {"conversation", "lora_name", "best_of", "safety_identifier"}


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def rows(kind: str) -> set[str]:
    cells = [line.split("|") for line in TABLE.splitlines() if line.startswith("| `")]
    return {name for row in cells if row[2].strip() == kind for name in names(row[1])}


@pytest.fixture(scope="module")
def vllms_fields() -> set[str]:
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

    classes = (
        AnthropicCountTokensRequest,
        AnthropicMessagesRequest,
        ChatCompletionRequest,
        CompletionRequest,
        ResponsesRequest,
        EmbeddingChatRequest,
        EmbeddingCompletionRequest,
        DetokenizeRequest,
        TokenizeChatRequest,
        TokenizeCompletionRequest,
    )
    return {name for cls in classes for name in cls.model_fields}


def test_the_docs_know_every_field_that_vllm_knows(vllms_fields: set[str]) -> None:
    told = names(HONOURED) | rows("refused") | rows("ignored")
    assert told - NOT_VLLMS == vllms_fields | {"service_tier", "metadata", "user"}
    assert not names(HONOURED) & (rows("ignored") | FORBIDDEN_FIELDS)


def test_the_docs_name_every_field_that_no_client_may_set() -> None:
    assert rows("refused") >= FORBIDDEN_FIELDS
