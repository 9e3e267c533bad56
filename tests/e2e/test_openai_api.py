"""Every inference endpoint on the real engine, by the clients that people use."""

import json
import uuid
from collections.abc import Iterator
from functools import reduce
from typing import Any, Literal

import anthropic
import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.stack_process import BASE_MODEL, Stack, example, upload, wait_for

QUESTION = "What is the capital of France?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
ASKED: list[anthropic.types.MessageParam] = [{"role": "user", "content": QUESTION}]
ADAPTER = f"{BASE_MODEL}:finance"
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        # vLLM holds only strict functions to their schema.
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "London"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    """A tenant's, that has one adapter."""
    key = stack.new_key(f"openai-{uuid.uuid4().hex}")
    with stack.api(key) as api:
        assert upload(api, "finance", example("finance"), wait_s=30).json()["status"] == "ready"
    return key


@pytest.fixture
def client(stack: Stack, key: str) -> openai.OpenAI:
    return stack.openai(key)


@pytest.fixture
def api(stack: Stack, key: str) -> Iterator[httpx.Client]:
    with stack.api(key) as api:
        yield api


@pytest.fixture
def claude(stack: Stack, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=stack.url, api_key=key, max_retries=0, timeout=60)


@pytest.fixture(params=[BASE_MODEL, ADAPTER])
def model(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_a_chat_streams_what_it_answers_whole(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": MESSAGES, "max_tokens": 12, "seed": 1}
    whole = client.chat.completions.create(**asked, temperature=0, logprobs=True, top_logprobs=2)
    assert whole.model == model
    assert whole.usage is not None
    assert whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens_details.cached_tokens is not None
    chunks = list(
        client.chat.completions.create(
            **asked, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.model for chunk in chunks} == {model}
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert whole.choices[0].logprobs is not None
    assert whole.choices[0].logprobs.content is not None
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    assert all(len(each.top_logprobs) >= 2 for each in whole.choices[0].logprobs.content)


def test_several_choices_and_a_stop(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=8, n=3, temperature=1, seed=7
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    stopped = client.completions.create(
        model=model, prompt="One, two, three, four, five, six", max_tokens=20, stop=[" eight"]
    )
    assert " eight" not in stopped.choices[0].text


class Capital(BaseModel):
    city: Literal["Paris", "London"]


def test_an_answer_by_a_schema_is_parsed(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(
        model=model, messages=MESSAGES, max_tokens=200, temperature=0, response_format=Capital
    )
    assert isinstance(answer.choices[0].message.parsed, Capital)
    chosen = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=10,
        extra_body={"structured_outputs": {"choice": ["Paris", "London"]}},
    )
    assert chosen.choices[0].message.content in ("Paris", "London")


def test_a_named_tool_is_called(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model,
        messages=MESSAGES,
        max_tokens=120,
        temperature=0,
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "London")


def test_a_tool_may_be_left_alone(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=MESSAGES, max_tokens=5, tools=[WEATHER], tool_choice="auto"
    )
    assert answer.choices[0].message.role == "assistant"


def test_completions_take_texts_and_tokens(client: openai.OpenAI, model: str) -> None:
    text = "The capital of France is"
    asked: dict[str, Any] = {"model": model, "max_tokens": 4, "temperature": 0}
    one = client.completions.create(prompt=text, **asked)
    both = client.completions.create(prompt=[text, "One, two,"], **asked)
    assert both.choices[0].text == one.choices[0].text
    assert one.usage is not None
    assert both.usage is not None
    assert both.usage.prompt_tokens > one.usage.prompt_tokens
    streamed = client.completions.create(prompt=text, stream=True, **asked)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def test_tokens_go_both_ways(api: httpx.Client, client: openai.OpenAI, model: str) -> None:
    text = "The capital of France is"
    tokens = api.post("/tokenize", json={"model": model, "prompt": text}).json()["tokens"]
    back = api.post("/detokenize", json={"model": model, "tokens": tokens}).json()
    assert back["prompt"] == text
    asked: dict[str, Any] = {"model": model, "max_tokens": 4, "temperature": 0}
    by_text = client.completions.create(prompt=text, echo=True, **asked)
    by_tokens = client.completions.create(prompt=tokens, echo=True, **asked)
    assert by_text.choices[0].text.startswith(text)
    assert by_tokens.choices[0].text == by_text.choices[0].text


def test_a_response_streams_what_it_answers_whole(client: openai.OpenAI, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "input": QUESTION, "max_output_tokens": 12}
    whole = client.responses.create(**asked, temperature=0, instructions="Be short.")
    assert whole.id.startswith("resp_")
    assert whole.model == model
    with client.responses.stream(**asked, temperature=0, instructions="Be short.") as stream:
        events = list(stream)
        assert stream.get_final_response().output_text == whole.output_text
    assert events[0].type == "response.created"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert {getattr(event, "response", whole).model for event in events} == {model}


def test_a_response_is_not_stored(client: openai.OpenAI) -> None:
    first = client.responses.create(model=BASE_MODEL, input=QUESTION, max_output_tokens=2)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model=BASE_MODEL, input="And?", previous_response_id=first.id)


def test_anthropics_client_gets_messages(claude: anthropic.Anthropic, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "messages": ASKED, "system": "Be short."}
    limits: dict[str, Any] = {"max_tokens": 12, "extra_body": {"temperature": 0}}
    whole = claude.messages.create(**asked, **limits)
    assert (whole.role, whole.model) == ("assistant", model)
    counted = claude.messages.count_tokens(**asked)
    cached = whole.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == whole.usage.input_tokens + cached
    with claude.messages.stream(**asked, **limits) as stream:
        kinds = [event.type for event in stream]
        streamed = stream.get_final_message()
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert streamed.model == model
    assert [block.text for block in streamed.content if block.type == "text"] == [
        block.text for block in whole.content if block.type == "text"
    ]
    assert streamed.stop_reason == whole.stop_reason
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_anthropics_client_calls_a_tool(claude: anthropic.Anthropic) -> None:
    tool: anthropic.types.ToolParam = {
        "name": "get_weather",
        "strict": True,
        "input_schema": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "London"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    answer = claude.messages.create(
        model=ADAPTER,
        max_tokens=120,
        messages=ASKED,
        tools=[tool],
        tool_choice={"type": "tool", "name": "get_weather"},
    )
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    assert call.input["city"] in ("Paris", "London")


def test_anthropics_client_knows_the_errors(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model=f"{BASE_MODEL}:nobodys", max_tokens=1, messages=ASKED)
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError) as caught:
            claude.messages.create(model=ADAPTER, max_tokens=5000, messages=ASKED, stream=stream)
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["error"]["type"] == "invalid_request_error"


LONG = "The treasurer pays the bill. " * 60
# Each endpoint's request of the same words, and where its usage tells what came from the cache.
CACHED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
        ("prompt_tokens_details", "cached_tokens"),
    ),
    "/v1/completions": (
        {"prompt": LONG, "max_tokens": 1},
        ("prompt_tokens_details", "cached_tokens"),
    ),
    "/v1/responses": (
        {"input": LONG, "max_output_tokens": 1},
        ("input_tokens_details", "cached_tokens"),
    ),
    "/v1/messages": (
        {"messages": [{"role": "user", "content": LONG}], "max_tokens": 1},
        ("cache_read_input_tokens",),
    ),
}


@pytest.mark.parametrize("path", sorted(CACHED))
def test_no_tenants_prompt_is_in_another_ones_cache(stack: Stack, path: str) -> None:
    body, place = CACHED[path]
    # Words of this test alone: the endpoints' prompts begin alike.
    body = json.loads(json.dumps(body).replace("treasurer", f"treasurer of {path}"))

    def told(api: httpx.Client) -> int:
        answer = api.post(path, json={"model": BASE_MODEL, **body})
        assert answer.status_code == 200, answer.text
        return (
            reduce(lambda found, name: (found or {}).get(name), place, answer.json()["usage"]) or 0
        )

    with (
        stack.api(stack.new_key(f"one-{uuid.uuid4().hex}")) as one,
        stack.api(stack.new_key(f"other-{uuid.uuid4().hex}")) as other,
    ):
        assert told(one) == 0
        assert told(one) > 0
        assert told(other) == 0


def test_a_model_that_does_not_embed_says_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=BASE_MODEL, input="Hello")
    assert caught.value.code == "unsupported_endpoint"
    assert "embeddings" in str(caught.value)


def test_each_prompt_of_a_batch_is_counted_as_the_engine_counts(
    stack: Stack,
) -> None:
    other = stack.openai(stack.new_key(f"counted-{uuid.uuid4().hex}"))
    answers = [
        other.completions.create(
            model=BASE_MODEL, prompt=["One, two,", "The capital of France is"], max_tokens=4, n=2
        ),
        other.completions.create(model=BASE_MODEL, prompt="Once upon a time", max_tokens=4),
    ]
    told = [answer.usage for answer in answers if answer.usage is not None]

    def counted() -> tuple[int, int]:
        with stack.api(other.api_key) as api:
            data = api.get("/v1/usage").json()["data"]
        return (
            sum(each["prompt_tokens"] for each in data),
            sum(each["completion_tokens"] for each in data),
        )

    expected = (
        sum(usage.prompt_tokens for usage in told),
        sum(usage.completion_tokens for usage in told),
    )
    wait_for(lambda: counted() == expected, f"usage of {expected}", deadline_s=60)


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/completions", "prompt"), ("/v1/responses", "input")]
)
def test_a_prompt_that_is_too_long_has_the_code_that_agents_look_for(
    api: httpx.Client, path: str, name: str
) -> None:
    answer = api.post(path, json={"model": ADAPTER, name: "x " * 3000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", {"messages": [{"content": "Hello"}]}),
        ("/v1/chat/completions", {"messages": MESSAGES, "temperature": -1}),
        ("/v1/completions", {"prompt": "Hello", "max_tokens": -1}),
        ("/v1/completions", {"prompt": "x " * 3000}),
        ("/v1/responses", {"input": "Hello", "temperature": "hot"}),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": -1}),
        ("/tokenize", {"prompt": 5}),
        ("/detokenize", {"tokens": [-1]}),
    ],
)
def test_what_the_engine_refuses_is_a_400_in_a_sentence(
    api: httpx.Client, path: str, fields: dict[str, Any]
) -> None:
    answer = api.post(path, json={"model": ADAPTER, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert not (error.get("param") or "").startswith("body")
    message = error["message"]
    assert "validation error" not in message
    assert "body" not in message
    assert "adp_" not in answer.text
