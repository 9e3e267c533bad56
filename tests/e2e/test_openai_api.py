"""Every inference endpoint on the real engine, by the clients that people use."""

import json
import uuid
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel

from tests.stack_process import BASE_MODEL, Stack, example, upload, wait_for

QUESTION = "What is the capital of France?"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
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


def test_messages_are_anthropics(stack: Stack, key: str, model: str) -> None:
    headers = {"x-api-key": key, "anthropic-version": "2023-06-01"}
    body = {"model": model, "max_tokens": 12, "temperature": 0, "messages": MESSAGES}
    with httpx.Client(base_url=stack.url, headers=headers, timeout=60) as api:
        whole = api.post("/v1/messages", json=body).json()
        counted = api.post("/v1/messages/count_tokens", json=body).json()
        streamed = api.post("/v1/messages", json={**body, "stream": True}).text
    assert (whole["type"], whole["role"], whole["model"]) == ("message", "assistant", model)
    assert counted["input_tokens"] == whole["usage"]["input_tokens"]
    events = [event.partition("\ndata: ") for event in streamed.strip().split("\n\n")]
    assert events[0][0] == "event: message_start"
    assert events[-1][0] == "event: message_stop"
    data = [json.loads(each[2]) for each in events]
    assert data[0]["message"]["model"] == model
    text = "".join(each["delta"].get("text", "") for each in data if "delta" in each)
    assert text == whole["content"][0]["text"]


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
    wait_for(lambda: counted() == expected, f"usage of {expected}", deadline_s=10)


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
    message = answer.json()["error"]["message"]
    assert "validation error" not in message
    assert "adp_" not in answer.text
