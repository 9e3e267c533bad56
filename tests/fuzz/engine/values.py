"""Values of a request's fields: of the right shape, at the edges, and of no shape at all."""

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

VOCABULARY = 49152
"""Of the generation model."""
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBERS: Sequence[Any] = (
    *(0, 1, -1, 2, 3, 7, 16, 20, 21, 128, 129, 512, 16384, 16385, VOCABULARY - 1, VOCABULARY),
    *(2**31 - 1, 2**31, -(2**31) - 1, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1),
    *(2**64 - 1, 2**64, 10**30, 0.0, -0.0, 0.5, 1.0, 1.5, 2.0, -2.0, 2.1, 1e-30, 1e-5, 1e30),
    *(1e308, -1e308, float("inf"), float("-inf"), float("nan")),
)
TEXTS: Sequence[str] = (
    *("", " ", "a", "the", "\n", "\x00", "\ud800", "a\udfff", "é漢🙂", "\u202e", "￿", "null"),
    *("<|im_end|>", "<|im_start|>", "</tool_call>", "x" * 3000, "🙂" * 400, "%s{}", "../../etc"),
)
TOKENS: Sequence[int] = (
    0,
    1,
    2,
    17,
    100,
    4000,
    VOCABULARY - 1,
    VOCABULARY,
    -1,
    2**31,
    2**63,
    2**70,
)
JSON_SCHEMAS: Sequence[Any] = (
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "integer", "multipleOf": 5},
    {"type": "number", "multipleOf": 0.1},
    {"type": "string", "pattern": "^a+$"},
    {"type": "string", "pattern": "("},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "no-such-format"},
    {"type": "string", "minLength": 3, "maxLength": 2},
    {"type": "string", "maxLength": 10**9},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 1},
    {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
    {"type": "array", "contains": {"type": "integer"}},
    {"type": "object", "patternProperties": {"^a": {"type": "integer"}}},
    {"type": "object", "propertyNames": {"pattern": "^b"}},
    {"type": "object", "minProperties": 3},
    {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}},
    {"$ref": "#/$defs/missing"},
    {"$ref": "http://127.0.0.1:9/schema"},
    {"$ref": "#"},
    {"anyOf": []},
    {"allOf": [{"type": "integer"}, {"type": "string"}]},
    {"oneOf": [{"const": 1}, {"const": 2}]},
    {"not": {}},
    {"enum": []},
    {"enum": [1, "a", None, {"b": []}]},
    {"const": "\ud800"},
    {"type": "no-such-type"},
    {"type": ["integer", "null"]},
    {"if": {"type": "integer"}, "then": {"minimum": 2}},
    {"type": "integer", "minimum": 5, "maximum": 3},
    {"type": "integer", "minimum": -(10**30), "maximum": 10**30},
    {"type": "object", "additionalProperties": False},
    {"type": "object", "properties": {"\x00": {"type": "null"}}, "required": ["\x00"]},
    *({}, True, False, None, [], "", "{", "{}", 5, '{"type": "integer"}', '"a"'),
)
REGEXES: Sequence[Any] = (
    *("[0-9]{3}", "(a|b)+", "", "(", "a{1,1000}", "(a+)+b", "\\d+\\b", "^a$", "(?=a)b", "(?i)a"),
    *("[^\\x00-\\xff]", "\\p{L}+", "\x00", ".*", "(?P<n>a)(?P=n)", "a{3,2}", "[z-a]", "🙂+"),
)
GRAMMARS: Sequence[Any] = (
    'root ::= "yes" | "no"',
    "root ::= root",
    'root ::= "a" root',
    "root ::=",
    "no grammar",
    'start: "a" | "b"',
    "start: /[0-9]+/",
    "start: missing",
    'root ::= ""',
    "%llguidance {}\nstart: /a/",
)
TOOLS: Sequence[Any] = tuple(
    [{"type": "function", "function": {"name": "look", "parameters": schema}}]
    for schema in JSON_SCHEMAS
)


def odd(rng: random.Random) -> Any:
    """Anything that JSON has, and the numbers that only Python's reader takes for it."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(NUMBERS)
    if kind in (3, 4):
        return rng.choice(TEXTS)
    if kind == 5:
        return [odd(rng) for _ in range(rng.choice((0, 1, 1, 2, 5)))]
    if kind == 6:
        return {rng.choice(TEXTS): odd(rng) for _ in range(rng.choice((0, 1, 2)))}
    deep: Any = rng.choice(NUMBERS)
    for _ in range(rng.choice((2, 70, 300))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def text(rng: random.Random) -> str:
    """A prompt's text: short, of several steps, nearly of the model's length, or strange."""
    kind = rng.random()
    if kind < 0.5:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))
    if kind < 0.85:
        # Beginnings in common are read from the prefix cache.
        begin = " ".join(WORDS * rng.choice((3, 6, 12)))
        return begin + " " + " ".join(rng.choices(WORDS, k=rng.randint(0, 40)))
    if kind < 0.9:
        return " ".join(WORDS[each % 10] for each in range(rng.choice((480, 500, 511, 512, 513))))
    return rng.choice(TEXTS)


def token_ids(rng: random.Random) -> list[Any]:
    """A prompt's tokens: mostly real ones."""
    count = rng.choice((1, 2, 10, 100, 200, 510, 511, 512, 0))
    ids: list[Any] = [rng.randrange(VOCABULARY) for _ in range(count)]
    if rng.random() < 0.3:
        ids.insert(rng.randint(0, len(ids)), rng.choice((*TOKENS, True, None, "1", 1.0, 1.5)))
    return ids


def prompt(rng: random.Random) -> Any:
    """A completion's prompt, one or several."""
    kind = rng.random()
    if kind < 0.6:
        return text(rng)
    if kind < 0.8:
        return token_ids(rng)
    if kind < 0.9:
        return [text(rng) for _ in range(rng.randint(1, 4))]
    if kind < 0.97:
        return [token_ids(rng) for _ in range(rng.randint(1, 3))]
    return odd(rng)


def content(rng: random.Random) -> Any:
    """A message's content."""
    if rng.random() < 0.8:
        return text(rng)
    if rng.random() < 0.5:
        return [{"type": "text", "text": text(rng)} for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.5:
        return [{"type": rng.choice(("image_url", "input_audio", "tool_use", "x")), "text": "a"}]
    return odd(rng)


def messages(rng: random.Random) -> Any:
    """A conversation."""
    roles = (
        "user",
        "user",
        "user",
        "assistant",
        "system",
        "developer",
        "tool",
        "function",
        "",
        "x",
    )
    made: list[Any] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        message: dict[str, Any] = {"role": rng.choice(roles), "content": content(rng)}
        if rng.random() < 0.1:
            call = {"name": "look", "arguments": rng.choice(("{}", "[", "5", "", None, {"a": 1}))}
            message["tool_calls"] = [{"id": "c", "type": "function", "function": call}]
        if rng.random() < 0.1:
            message[rng.choice(("name", "tool_call_id", "reasoning", "refusal", "prefix"))] = odd(
                rng
            )
        made.append(message)
    if rng.random() < 0.7:
        made[-1]["role"] = "user"
    return made


def structured(rng: random.Random) -> Any:
    """Constraints in vLLM's words."""
    kinds: Sequence[tuple[str, Sequence[Any]]] = (
        ("json", JSON_SCHEMAS),
        ("regex", REGEXES),
        ("choice", (["a", "b"], [], [""], ["a", "a"], ["\ud800"], [1], "a", ["x" * 2000, "y"])),
        ("grammar", GRAMMARS),
        ("json_object", (True, False, None, 1)),
        (
            "structural_tag",
            ("", "{}", "{", '{"type": "structural_tag", "format": {"type": "any_text"}}'),
        ),
    )
    name, values = rng.choice(kinds)
    made = {name: rng.choice(values)}
    if rng.random() < 0.2:
        made[rng.choice(("whitespace_pattern", "disable_any_whitespace", "_backend", "json"))] = (
            odd(rng)
        )
    return made


def response_format(rng: random.Random) -> Any:
    """Constraints in OpenAI's words."""
    schema = {"name": "a", "schema": rng.choice(JSON_SCHEMAS), "strict": rng.choice((True, False))}
    return rng.choice(
        (
            {"type": "json_object"},
            {"type": "text"},
            {"type": "json_schema", "json_schema": schema},
            {"type": "json_schema", "json_schema": schema},
            {"type": "json_schema"},
            {"type": "structural_tag", "format": {"type": "any_text"}},
            {"type": "structural_tag", "structures": [], "triggers": []},
            {"type": rng.choice(TEXTS)},
        )
    )


def tokens(rng: random.Random) -> list[Any]:
    """Some token ids, one of which may be none of the model's."""
    made: list[Any] = [rng.randrange(VOCABULARY) for _ in range(rng.choice((0, 1, 3, 130, 1100)))]
    return [*made, rng.choice(TOKENS)] if rng.random() < 0.4 else made


def _one_of(*values: Any) -> Callable[[random.Random], Any]:
    return lambda rng: rng.choice(values)


def _logit_bias(rng: random.Random) -> Any:
    keys = [str(each) for each in tokens(rng)[:300]] or [rng.choice(("a", "", "1.5", "-1", "²"))]
    values = (1, -1, 100, -100, 101, 0.5, *NUMBERS[-6:])
    return {key: rng.choice(values) for key in keys}


def _repetition(rng: random.Random) -> Any:
    names = ("max_pattern_size", "min_pattern_size", "min_count")
    return {name: rng.choice((0, 1, 2, 3, 50, 2**31, 2**64, -1)) for name in names}


_PENALTY = _one_of(-2, 2, 0, 1.5, -1.9999, 2.0001, 1)
_COUNT = _one_of(0, 1, 2, 5, 20, 21, -1, -2, 128, 512, 2**31, 2**63, 2**64)
OF_FIELD: Mapping[str, Callable[[random.Random], Any]] = MappingProxyType(
    {
        "allowed_token_ids": tokens,
        "bad_words": lambda rng: rng.sample(TEXTS, rng.randint(0, 5)),
        "dimensions": _COUNT,
        "frequency_penalty": _PENALTY,
        "input": prompt,
        "instructions": content,
        "length_penalty": _one_of(0, 1, -1, 2.5, 1e308, float("inf")),
        "logit_bias": _logit_bias,
        "logprob_token_ids": tokens,
        "logprobs": _one_of(True, False, 0, 1, 5, 20, 21, -1, -2),
        "max_completion_tokens": _one_of(1, 2, 8, 40, 0, -1, None, 512, 2**63),
        "max_output_tokens": _one_of(1, 2, 8, 40, 0, -1, None, 512, 2**63),
        "max_tokens": _one_of(1, 2, 8, 40, 0, -1, None, 512, 2**63),
        "messages": messages,
        "min_p": _one_of(0, 0.1, 1, 1.1, -0.1),
        "min_tokens": _one_of(0, 1, 5, 16, 40, 512, -1, 2**63, 2**70),
        "n": _one_of(1, 2, 3, 8, 16, 17, 128),
        "presence_penalty": _PENALTY,
        "prompt": prompt,
        "prompt_logprobs": _one_of(0, 1, 5, 20, 21, -1, True),
        "repetition_detection": _repetition,
        "repetition_penalty": _one_of(1, 0.01, 1e-30, 1.5, 100, 1e30, 0, -1),
        "response_format": response_format,
        "seed": _one_of(0, 1, -1, 42, 2**31, 2**63 - 1, -(2**63), 2**63, 2**64),
        "stop": _one_of("a", [" "], ["a", "b", "c", "d"], [], "", ["\n"], ["é", "x" * 500]),
        "stop_token_ids": tokens,
        "stream": _one_of(True, True, False),
        "stream_interval": _one_of(1, 2, 10, 0, -1, 2**63, 2**64),
        "stream_options": _one_of(
            {"include_usage": True},
            {"continuous_usage_stats": True, "include_usage": True},
            {},
            None,
        ),
        "structured_outputs": structured,
        "suffix": _one_of("", None),
        "temperature": _one_of(0, 1e-6, 0.5, 1, 2, 2.1, -0.1, 1e-300),
        "thinking_token_budget": _COUNT,
        "tokens": token_ids,
        "tool_choice": _one_of(
            "auto", "none", "required", {"type": "function", "function": {"name": "look"}}, {}, "x"
        ),
        "tools": _one_of(*TOOLS),
        "top_k": _one_of(0, -1, 1, 5, 49152, 49153, 2**31, 2**63, 2**64),
        "top_logprobs": _COUNT,
        "top_p": _one_of(1, 0.5, 1e-30, 1e-5, 0, 1.1),
        "truncate_prompt_tokens": _one_of(-1, 0, 1, 5, 511, 512, 513, -2, 2**63),
    }
)
"""Fields whose values are mostly near the edge of what they may be."""


def of_field(name: str, rng: random.Random, *, oddness: float = 0.1) -> Any:
    """A value for a field, now and then one of no shape at all."""
    make = OF_FIELD.get(name)
    if make is None or rng.random() < oddness:
        return odd(rng)
    return make(rng)
