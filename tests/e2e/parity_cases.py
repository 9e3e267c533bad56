"""Requests that vLLM's own server and ours are both sent, as data.

A good one is what is put into a small greedy request; a bad one is a whole body.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tests.stack_process import BASE_MODEL

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A request to both servers."""

    path: str
    name: str
    body: Fields | bytes

    def __str__(self) -> str:
        return f"{self.path.rsplit('/', 1)[-1]}: {self.name}"


CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
ADAPTERS = ("finance", "legal")
MODELS = (BASE_MODEL, *(f"{BASE_MODEL}:{name}" for name in ADAPTERS))
_QUESTION = [{"role": "user", "content": "What is compound interest?"}]
DEFAULTS: Mapping[str, Fields] = MappingProxyType(
    {
        CHAT: {"messages": _QUESTION, "temperature": 0, "max_tokens": 6},
        COMPLETIONS: {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 6},
        RESPONSES: {"input": "What is an index fund?", "temperature": 0, "max_output_tokens": 6},
        MESSAGES: {"messages": _QUESTION, "temperature": 0, "max_tokens": 6},
    }
)
"""A small greedy request of each endpoint."""

_WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
_CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}
_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}
_HERMES_CALL = (
    r'<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "(Paris|Rome)"\}\}\n</tool_call>'
)
_ASK_WEATHER = [{"role": "user", "content": "What is the weather in Rome?"}]
_AFTER_A_CALL = [
    *_ASK_WEATHER,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees and sunny"},
]
_PREFILL = [
    {"role": "user", "content": "Name three colours."},
    {"role": "assistant", "content": "Red, green and"},
]


def _user(content: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


GOOD_CHAT: Mapping[str, Fields] = {
    "plain": {},
    "system": {
        "messages": [
            {"role": "system", "content": "Answer in one word."},
            {"role": "user", "content": "What is the capital of Italy?"},
        ]
    },
    "developer": {
        "messages": [
            {"role": "developer", "content": "Answer in one word."},
            {"role": "user", "content": "What is the capital of Spain?"},
        ]
    },
    "several turns": {
        "messages": [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello Ada."},
            {"role": "user", "content": "What is my name?"},
        ]
    },
    "named user": {"messages": [{"role": "user", "name": "ada", "content": "Hi"}]},
    "content parts": _user(
        [{"type": "text", "text": "What is two"}, {"type": "text", "text": "plus two?"}]
    ),
    "other alphabets": _user("Übersetze „貓“ ins Français: 🐈"),
    "an empty message": _user(""),
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 5},
    "both token limits": {"max_tokens": 9, "max_completion_tokens": 4},
    "one token": {"max_tokens": 1},
    "the model's own end": {**_user("Say yes."), "max_tokens": 24},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 3},
    "no top_logprobs": {"logprobs": True, "top_logprobs": 0},
    "tokens as ids": {
        "logprobs": True,
        "top_logprobs": 1,
        "return_tokens_as_token_ids": True,
    },
    "logprob_token_ids": {"logprobs": True, "logprob_token_ids": [260, 282, 1904]},
    "return_token_ids": {"return_token_ids": True},
    "return_prompt_text": {"return_prompt_text": True},
    "n": {"n": 3, "temperature": 0.9, "seed": 7},
    "n with logprobs": {"n": 2, "temperature": 0.9, "seed": 7, "logprobs": True},
    "n of one": {"n": 1},
    "seed": {"temperature": 1.0, "seed": 1234},
    "another seed": {"temperature": 1.3, "seed": 99, "top_p": 0.9},
    "top_p": {"temperature": 1.0, "seed": 5, "top_p": 0.2},
    "top_k": {"temperature": 1.0, "seed": 5, "top_k": 3},
    "min_p": {"temperature": 1.0, "seed": 5, "min_p": 0.3},
    "repetition_penalty": {"repetition_penalty": 1.6, "max_tokens": 12},
    "presence_penalty": {"presence_penalty": 1.5, "max_tokens": 12},
    "frequency_penalty": {"frequency_penalty": 1.5, "max_tokens": 12},
    "negative penalties": {"frequency_penalty": -1.0, "presence_penalty": -1.0},
    "logit_bias": {"logit_bias": {"28": 50}},
    "logit_bias against": {"logit_bias": {"504": -100, "9021": -100}},
    "bad_words": {"bad_words": ["Compound", " interest"]},
    "allowed_token_ids": {"allowed_token_ids": [28, 30, 260, 282]},
    "stop": {"stop": "is", "max_tokens": 16},
    "stop list": {"stop": ["zebra", " interest"], "max_tokens": 16},
    "stop in the output": {
        "stop": [" is"],
        "include_stop_str_in_output": True,
        "max_tokens": 16,
    },
    "stop_token_ids": {"stop_token_ids": [314, 28], "max_tokens": 16},
    "ignore_eos": {**_user("Say yes."), "ignore_eos": True, "max_tokens": 24},
    "min_tokens": {**_user("Say yes."), "min_tokens": 12, "max_tokens": 14},
    "special tokens kept": {**_user("Say yes."), "skip_special_tokens": False, "max_tokens": 20},
    "spaces between special tokens": {"spaces_between_special_tokens": False},
    "add_generation_prompt": {"add_generation_prompt": False},
    "continue_final_message": {
        "messages": _PREFILL,
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "echo of the prefill": {
        "messages": _PREFILL,
        "add_generation_prompt": False,
        "continue_final_message": True,
        "echo": True,
    },
    "echo": {"echo": True},
    "add_special_tokens": {"add_special_tokens": True},
    "documents": {"documents": [{"title": "A", "text": "B"}]},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 12},
    "truncation_side": {"truncate_prompt_tokens": 12, "truncation_side": "right"},
    "response_format text": {"response_format": {"type": "text"}},
    "json_object": {"response_format": {"type": "json_object"}, "max_tokens": 12},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "strict": True, "schema": _PERSON},
        },
        "max_tokens": 24,
    },
    "structured json": {"structured_outputs": {"json": _PERSON}, "max_tokens": 24},
    "structured choice": {"structured_outputs": {"choice": ["good", "bad"]}},
    "structured regex": {"structured_outputs": {"regex": "[0-9]{3}-[a-c]{2}"}, "max_tokens": 12},
    "structured grammar": {
        "structured_outputs": {"grammar": 'root ::= "yes" | "no, " [a-z] [a-z]'},
        "max_tokens": 12,
    },
    "tools auto": {"messages": _ASK_WEATHER, "tools": [_WEATHER], "tool_choice": "auto"},
    "tools by default": {"messages": _ASK_WEATHER, "tools": [_WEATHER, _CLOCK]},
    "tools none": {"messages": _ASK_WEATHER, "tools": [_WEATHER], "tool_choice": "none"},
    "tools auto, called": {
        "messages": _ASK_WEATHER,
        "tools": [_WEATHER],
        "tool_choice": "auto",
        "structured_outputs": {"regex": _HERMES_CALL},
        "max_tokens": 40,
    },
    "tools required": {
        "messages": _ASK_WEATHER,
        "tools": [_WEATHER],
        "tool_choice": "required",
        "max_tokens": 40,
    },
    "tools named": {
        "messages": _ASK_WEATHER,
        "tools": [_CLOCK, _WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 24,
    },
    "tools named, cut short": {
        "messages": _ASK_WEATHER,
        "tools": [_WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 2,
    },
    "parallel_tool_calls": {
        "messages": _ASK_WEATHER,
        "tools": [_WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 40,
    },
    "a tool's answer": {"messages": _AFTER_A_CALL, "tools": [_WEATHER]},
    "reasoning_effort": {"reasoning_effort": "low"},
    "include_reasoning": {"include_reasoning": False},
    "fields of OpenAI's that change nothing": {
        "user": "ada",
        "store": True,
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "verbosity": "low",
    },
    "a field nobody knows": {"no_such_field": 1},
    "repetition_detection": {
        "repetition_detection": {"max_pattern_size": 2, "min_count": 2},
        "logit_bias": {"28": 100},
        "max_tokens": 12,
    },
    "everything null": dict.fromkeys(
        ("stop", "n", "top_p", "seed", "tools", "tool_choice", "logprobs", "logit_bias", "user")
    ),
}
"""What goes into a chat request."""

GOOD_COMPLETIONS: Mapping[str, Fields] = {
    "plain": {},
    "max_tokens by default": {"max_tokens": None},
    "token ids": {"prompt": [504, 3575, 282, 4649, 314]},
    "a batch": {"prompt": ["One, two,", "The sky is"]},
    "a batch of token ids": {"prompt": [[504, 3575, 282, 4649, 314], [504, 6376]]},
    "a batch with n": {"prompt": ["One,", "Two,"], "n": 2, "temperature": 0.8, "seed": 3},
    "echo": {"echo": True},
    "echo of token ids": {"echo": True, "prompt": [504, 3575, 282]},
    "echo with logprobs": {"echo": True, "logprobs": 2},
    "echo alone": {"echo": True, "max_tokens": 0},
    "echo alone with logprobs": {"echo": True, "max_tokens": 0, "logprobs": 1},
    "logprobs": {"logprobs": 0},
    "top logprobs": {"logprobs": 4},
    "logprobs as a flag": {"logprobs": True},
    "logprobs as ids": {"logprobs": 1, "return_tokens_as_token_ids": True},
    "return_token_ids": {"return_token_ids": True},
    "n": {"n": 3, "temperature": 1.0, "seed": 11},
    "seed": {"temperature": 1.0, "seed": 42},
    "min_p": {"temperature": 1.0, "seed": 42, "min_p": 0.2},
    "top_k": {"temperature": 1.0, "seed": 42, "top_k": 2},
    "stop": {"stop": ["."], "max_tokens": 20},
    "stop in the output": {"stop": ["."], "include_stop_str_in_output": True, "max_tokens": 20},
    "stop_token_ids": {"stop_token_ids": [30], "max_tokens": 20},
    "ignore_eos": {"ignore_eos": True, "max_tokens": 8},
    "min_tokens": {"min_tokens": 8, "max_tokens": 8},
    "repetition_penalty": {"repetition_penalty": 1.5},
    "penalties": {"presence_penalty": 1.0, "frequency_penalty": 1.0},
    "logit_bias": {"logit_bias": {"28": 60}},
    "bad_words": {"bad_words": [" Paris"]},
    "allowed_token_ids": {"allowed_token_ids": [28, 30, 260]},
    "special tokens": {"prompt": "<|im_start|>user\nHi<|im_end|>\n", "skip_special_tokens": False},
    "add_special_tokens": {"add_special_tokens": False},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 3},
    "json_object": {"response_format": {"type": "json_object"}, "max_tokens": 10},
    "json_schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": _PERSON},
        },
        "max_tokens": 24,
    },
    "structured choice": {"structured_outputs": {"choice": [" Paris", " Rome"]}},
    "structured regex": {"structured_outputs": {"regex": "[a-d]{4}"}},
    "user": {"user": "ada"},
    "best_of": {"best_of": 1},
}
"""What goes into a text completion."""

WHOLE_ONLY: Mapping[str, tuple[str, Fields]] = {
    "chat with prompt_logprobs": (CHAT, {"prompt_logprobs": 1}),
    "chat with prompt_logprobs of zero": (CHAT, {"prompt_logprobs": 0}),
    "chat with beam search": (CHAT, {"use_beam_search": True, "n": 2}),
    "completion with prompt_logprobs": (COMPLETIONS, {"prompt_logprobs": 2}),
    "completion with beam search": (COMPLETIONS, {"use_beam_search": True, "n": 2}),
}
"""What doesn't stream."""

STREAM_ONLY: Mapping[str, tuple[str, Fields]] = {
    "chat with usage": (CHAT, {"stream_options": {"include_usage": True}}),
    "chat with running usage": (
        CHAT,
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "chat without usage": (CHAT, {"stream_options": {"include_usage": False}}),
    "chat of three with usage": (
        CHAT,
        {"n": 3, "temperature": 0.9, "seed": 1, "stream_options": {"include_usage": True}},
    ),
    "completion with usage": (COMPLETIONS, {"stream_options": {"include_usage": True}}),
    "completion with running usage": (
        COMPLETIONS,
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "a batch with usage": (
        COMPLETIONS,
        {"prompt": ["One,", "The sky"], "stream_options": {"include_usage": True}},
    ),
}
"""What only streams have."""

_HI = [{"role": "user", "content": "Hi"}]
_TWO_KINDS = {"choice": ["a"], "regex": "b"}

BAD_FIELDS: Mapping[str, Fields] = {
    "temperature below zero": {"temperature": -0.5},
    "temperature as a word": {"temperature": "hot"},
    "temperature as a list": {"temperature": [1]},
    "top_p of zero": {"top_p": 0},
    "top_p above one": {"top_p": 1.5},
    "top_p as a word": {"top_p": "all"},
    "top_k below minus one": {"top_k": -5},
    "top_k as a fraction": {"top_k": 1.5},
    "min_p above one": {"min_p": 2},
    "min_p below zero": {"min_p": -0.1},
    "presence_penalty too high": {"presence_penalty": 3},
    "presence_penalty too low": {"presence_penalty": -2.5},
    "frequency_penalty too high": {"frequency_penalty": 2.1},
    "frequency_penalty too low": {"frequency_penalty": -3},
    "repetition_penalty of zero": {"repetition_penalty": 0},
    "repetition_penalty below zero": {"repetition_penalty": -1},
    "max_tokens below zero": {"max_tokens": -1},
    "max_tokens as a word": {"max_tokens": "many"},
    "max_tokens above the context": {"max_tokens": 100_000},
    "min_tokens below zero": {"min_tokens": -1},
    "min_tokens above max_tokens": {"min_tokens": 5, "max_tokens": 2},
    "n of zero": {"n": 0},
    "n below zero": {"n": -1},
    "n as a word": {"n": "two"},
    "n without sampling": {"n": 2, "temperature": 0},
    "n far too high": {"n": 100_000},
    "seed as a word": {"seed": "x"},
    "seed beyond 64 bits": {"seed": 2**70},
    "stop as a number": {"stop": 5},
    "stop with an empty string": {"stop": [""]},
    "stop_token_ids as words": {"stop_token_ids": ["a"]},
    "stop_token_ids beyond the vocabulary": {"stop_token_ids": [10**9]},
    "logit_bias as a list": {"logit_bias": [1]},
    "logit_bias of a word": {"logit_bias": {"hello": 1}},
    "logit_bias beyond the vocabulary": {"logit_bias": {"999999": 1}},
    "allowed_token_ids empty": {"allowed_token_ids": []},
    "allowed_token_ids beyond the vocabulary": {"allowed_token_ids": [10**9]},
    "bad_words as a number": {"bad_words": 3},
    "bad_words empty": {"bad_words": [""]},
    "ignore_eos as a word": {"ignore_eos": "perhaps"},
    "stream as a word": {"stream": "perhaps"},
    "stream as a number": {"stream": 7},
    "stream_options without stream": {"stream_options": {"include_usage": True}},
    "stream_options as a list": {"stream": True, "stream_options": [1]},
    "include_usage as a word": {"stream": True, "stream_options": {"include_usage": "perhaps"}},
    "response_format of an unknown type": {"response_format": {"type": "yaml"}},
    "response_format as a word": {"response_format": "json"},
    "json_schema without a schema": {"response_format": {"type": "json_schema"}},
    "json_schema that is none": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
        }
    },
    "structured_outputs of two kinds": {"structured_outputs": _TWO_KINDS},
    "structured_outputs of no kind": {"structured_outputs": {}},
    "a broken regex": {"structured_outputs": {"regex": "(["}},
    "a broken grammar": {"structured_outputs": {"grammar": "root ::= ("}},
    "an empty choice": {"structured_outputs": {"choice": []}},
    "prompt_logprobs below minus one": {"prompt_logprobs": -3},
    "prompt_logprobs as a word": {"prompt_logprobs": "x"},
    "prompt_logprobs in a stream": {"prompt_logprobs": 1, "stream": True},
    "prompt_logprobs beyond the limit": {"prompt_logprobs": 1000},
    "logprob_token_ids without logprobs": {"logprob_token_ids": [5]},
    "truncate_prompt_tokens below minus one": {"truncate_prompt_tokens": -4},
    "truncation_side of nobody": {"truncation_side": "middle", "truncate_prompt_tokens": 3},
    "an unknown model": {"model": "gpt-4"},
    "an unknown adapter": {"model": f"{BASE_MODEL}:nobody"},
    "model as a number": {"model": 5},
    "min_tokens as a word": {"min_tokens": "x"},
    "a thinking budget without thoughts": {"thinking_token_budget": 5},
    "stream_interval of zero": {"stream_interval": 0},
}
"""What is wrong in a chat request and a completion alike."""

BAD_CHAT: Mapping[str, Fields] = {
    "no messages": {"messages": None},
    "empty messages": {"messages": []},
    "messages as a word": {"messages": "Hi"},
    "messages of words": {"messages": ["Hi"]},
    "a message without a role": {"messages": [{"content": "Hi"}]},
    "content as a number": {"messages": [{"role": "user", "content": 5}]},
    "a content part of an unknown type": {
        "messages": [{"role": "user", "content": [{"type": "smell", "smell": "rose"}]}]
    },
    "an image for a text model": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
                ],
            }
        ]
    },
    "audio for a text model": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
                ],
            }
        ]
    },
    "a prompt longer than the context": {"messages": [{"role": "user", "content": "word " * 4000}]},
    "logprobs as a word": {"logprobs": "x"},
    "top_logprobs without logprobs": {"top_logprobs": 2},
    "top_logprobs as a word": {"logprobs": True, "top_logprobs": "x"},
    "top_logprobs too many": {"logprobs": True, "top_logprobs": 500},
    "top_logprobs below zero": {"logprobs": True, "top_logprobs": -2},
    "empty tools": {"tools": []},
    "tools as a word": {"tools": "x"},
    "a tool without a function": {"tools": [{"type": "function"}]},
    "a tool without a name": {"tools": [{"type": "function", "function": {}}]},
    "tool_choice without tools": {"tool_choice": "auto"},
    "tool_choice of nobody": {"tools": [_WEATHER], "tool_choice": "sometimes"},
    "tool_choice of an unknown tool": {
        "tools": [_WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "nobody"}},
    },
    "tool_choice without a name": {
        "tools": [_WEATHER],
        "tool_choice": {"type": "function", "function": {}},
    },
    "a named tool with a constraint": {
        "tools": [_WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "structured_outputs": {"regex": "a"},
    },
    "both ends of the final message": {
        "messages": _PREFILL,
        "continue_final_message": True,
        "add_generation_prompt": True,
    },
    "max_completion_tokens below zero": {"max_completion_tokens": -1},
    "reasoning_effort of nobody": {"reasoning_effort": "heroic"},
    "tool_calls without a function": {
        "messages": [{"role": "assistant", "tool_calls": [{"id": "x", "type": "function"}]}]
    },
}
"""What is wrong in a chat request."""

BAD_COMPLETIONS: Mapping[str, Fields] = {
    "no prompt": {"prompt": None},
    "an empty prompt": {"prompt": ""},
    "an empty batch": {"prompt": []},
    "an empty list of token ids": {"prompt": [[]]},
    "a prompt as a number": {"prompt": 5},
    "a prompt as an object": {"prompt": {"text": "x"}},
    "a mixed batch": {"prompt": ["x", 5]},
    "token ids beyond the vocabulary": {"prompt": [10**9]},
    "token ids below zero": {"prompt": [-1]},
    "a prompt longer than the context": {"prompt": "word " * 4000},
    "token ids longer than the context": {"prompt": [5] * 3000},
    "suffix": {"suffix": "the end"},
    "logprobs as a word": {"logprobs": "x"},
    "logprobs too many": {"logprobs": 500},
    "logprobs below minus one": {"logprobs": -2},
    "echo as a word": {"echo": "perhaps"},
    "no tokens at all": {"max_tokens": 0},
}
"""What is wrong in a text completion."""

BAD_BODIES: Mapping[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a word": b'"x"',
    "null": b"null",
    "an empty object": b"{}",
    "bytes that are no text": b"\xff\xfe",
    "NaN": b'{"model": "smollm2-135m-instruct", "prompt": "x", "temperature": NaN, "messages": '
    b'[{"role": "user", "content": "x"}]}',
    "deep nesting": b"[" * 5000 + b"]" * 5000,
}
"""What can't be a request of either kind."""
_FUNCTION = {"type": "function", **_WEATHER["function"], "strict": False}  # type: ignore[dict-item]
_TOOL = {
    "name": "get_weather",
    "input_schema": _WEATHER["function"]["parameters"],  # type: ignore[index]
}

GOOD_RESPONSES: Mapping[str, Fields] = {
    "plain": {},
    "instructions": {"instructions": "Answer in one word."},
    "turns": {
        "input": [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello Ada."},
            {"role": "user", "content": [{"type": "input_text", "text": "What is my name?"}]},
        ]
    },
    "seed": {"temperature": 1.0, "seed": 3, "top_p": 0.8},
    "json_schema": {
        "text": {"format": {"type": "json_schema", "name": "person", "schema": _PERSON}},
        "max_output_tokens": 24,
    },
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "tools auto": {"tools": [_FUNCTION]},
    "tools required": {"tools": [_FUNCTION], "tool_choice": "required", "max_output_tokens": 48},
    "tools named": {
        "tools": [_FUNCTION],
        "tool_choice": {"type": "function", "name": "get_weather"},
        "max_output_tokens": 48,
    },
    "a tool's answer": {
        "input": [
            {"role": "user", "content": "Weather in Rome?"},
            {
                "type": "function_call",
                "call_id": "call_1",
                "name": "get_weather",
                "arguments": '{"city": "Rome"}',
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        ],
        "tools": [_FUNCTION],
    },
}
"""What goes into a response of the Responses API."""

GOOD_MESSAGES: Mapping[str, Fields] = {
    "plain": {},
    "system": {"system": "Answer in one word."},
    "system parts": {"system": [{"type": "text", "text": "Answer in one word."}]},
    "content parts": _user([{"type": "text", "text": "Say yes."}]),
    "stop_sequences": {"stop_sequences": [" is"], "max_tokens": 16},
    "top_k": {"top_k": 1, "temperature": 1.0},
    "tools": {"tools": [_TOOL]},
    "tools named": {
        "tools": [_TOOL],
        "tool_choice": {"type": "tool", "name": "get_weather"},
        "max_tokens": 48,
    },
}
"""What goes into a request of Anthropic's Messages API."""

OTHERS: Mapping[str, tuple[str, Fields]] = {
    "tokenize a text": ("/tokenize", {"prompt": "Compound interest"}),
    "tokenize with texts": ("/tokenize", {"prompt": "Hi", "return_token_strs": True}),
    "tokenize without special tokens": ("/tokenize", {"prompt": "Hi", "add_special_tokens": False}),
    "tokenize a chat": ("/tokenize", _user("Hi")),
    "detokenize": ("/detokenize", {"tokens": [504, 3575, 282, 4649]}),
    "count_tokens": ("/v1/messages/count_tokens", _user("Hi")),
}
"""What has one answer."""

STRICTER: Mapping[str, str] = {}
"""The bad requests that vLLM answers and we refuse: by name, the words of the docs."""


def good(*, stream: bool) -> list[Case]:
    """The good requests of one kind, spread over the base model and the adapters."""
    either = {
        CHAT: GOOD_CHAT,
        COMPLETIONS: GOOD_COMPLETIONS,
        RESPONSES: GOOD_RESPONSES,
        MESSAGES: GOOD_MESSAGES,
    }
    requests = [
        *((path, name, fields) for path, group in either.items() for name, fields in group.items()),
        *(
            (path, name, fields)
            for group in ((STREAM_ONLY,) if stream else (WHOLE_ONLY, OTHERS))
            for name, (path, fields) in group.items()
        ),
    ]
    mode: dict[str, Any] = {"stream": True} if stream else {}
    return [
        Case(path=path, name=name, body=_body(path, fields, MODELS[index % len(MODELS)]) | mode)
        for index, (path, name, fields) in enumerate(requests)
    ]


def bad() -> Iterator[Case]:
    """The bad requests."""
    for path, own in ((CHAT, BAD_CHAT), (COMPLETIONS, BAD_COMPLETIONS)):
        for name, fields in {**BAD_FIELDS, **own}.items():
            yield Case(path=path, name=name, body=_body(path, fields, BASE_MODEL))
        for name, body in BAD_BODIES.items():
            yield Case(path=path, name=name, body=body)


def _body(path: str, fields: Fields, model: str) -> dict[str, Any]:
    return {"model": model, **DEFAULTS.get(path, {}), **fields}
