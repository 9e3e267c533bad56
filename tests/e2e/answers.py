"""Two servers' answers to one request, made comparable.

What is random or names a moment is taken out; float noise is allowed for; a text that one server
sent in one event and the other in two counts as the same.
"""

import json
import math
import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

NOISE = 1e-3
"""How far two logprobs of one token may lie apart, absolute and relative."""

_ABSENT = "(absent)"
_MOMENTS = {"created", "created_at", "completed_at"}
# Events that are joined have fewer numbers.
_COUNTERS = {"sequence_number"}
_IDS = {"id", "item_id", "call_id", "request_id"}
_RANDOM_END = re.compile(r"[0-9a-f]{8,}(-[0-9a-f]+)*$")
_TEXTS = {"content", "text", "delta", "reasoning", "arguments", "partial_json"}
_NUMBERED = {"choices", "tool_calls"}


def events(text: str) -> list[Any]:
    """An event stream's data, in order; comments are left out."""
    blocks = (re.findall(r"^data: (.*)$", block, re.MULTILINE) for block in text.split("\n\n"))
    datas = ("\n".join(lines) for lines in blocks if lines)
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def joined_events(text: str) -> list[Any]:
    """A stream's events in an order and of a size that do not depend on timing.

    The choices of one request overtake each other, so they come one after the other here; what
    belongs to no choice stays last.
    """
    joined: list[Any] = []
    for event in sorted(events(text), key=_choice):
        if joined and (piece := _piece_of(event)) and _piece_of(joined[-1]) == piece:
            joined[-1] = _joined(joined[-1], event)
        else:
            joined.append(event)
    return joined


def differences(ours: Any, theirs: Any) -> list[str]:
    """Where two answers differ, in words."""
    mine, other = dict(_leaves(ours)), dict(_leaves(theirs))
    pairs = {
        path: (mine.get(path, _ABSENT), other.get(path, _ABSENT)) for path in {**mine, **other}
    }
    return [
        f"{path}: ours {our!r}, theirs {their!r}"
        for path, (our, their) in pairs.items()
        if not _same(our, their)
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What is in the document, by where it is; an empty container is something."""
    items: Mapping[str, Any] = {}
    if isinstance(value, dict):
        items = {f"{path}.{key}": _settled(key, each) for key, each in value.items()}
    elif isinstance(value, list):
        items = {f"{path}[{index}]": each for index, each in enumerate(value)}
    if not items:
        yield path, value
    for inner, each in items.items():
        yield from _leaves(each, inner)


def _settled(key: str, value: Any) -> Any:
    if key in _MOMENTS | _COUNTERS:
        return None
    return _RANDOM_END.sub("", value) if key in _IDS and isinstance(value, str) else value


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=NOISE, abs_tol=NOISE)
    return bool(ours == theirs)


def _choice(event: Any) -> float:
    if isinstance(event, str) or "type" in event:
        return 0 if event != "[DONE]" else math.inf
    return int(event["choices"][0]["index"]) if event["choices"] else math.inf


def _piece_of(event: Any) -> Hashable:
    """Of which text an event is a piece, be it the last one; None of none.

    A server that is late sends what came meanwhile with the last piece, finish_reason and all.
    """
    if isinstance(event, str):
        return None
    if "type" in event:
        is_piece = event["type"].endswith("delta") and event["type"] != "message_delta"
        return (event["type"], event.get("item_id"), event.get("index")) if is_piece else None
    return _piece_of_choice(event["choices"][0]) if len(event["choices"]) == 1 else None


def _piece_of_choice(choice: Mapping[str, Any]) -> Hashable:
    delta = choice.get("delta", {})
    calls = delta.get("tool_calls") or []
    begins = "role" in delta or any("id" in call for call in calls)
    return (
        None if begins else (choice["index"], *choice, *delta, *(call["index"] for call in calls))
    )


def _joined(first: Any, second: Any, key: str = "") -> Any:
    """Two pieces as one: texts and lists one after the other, of all else the later."""
    if isinstance(first, dict) and isinstance(second, dict) and key != "usage":
        both = {**first, **second}
        return {
            name: _joined(first[name], second[name], name)
            if name in first and name in second
            else both[name]
            for name in both
        }
    if isinstance(first, list) and isinstance(second, list):
        if key in _NUMBERED:
            return [_joined(*pair) for pair in zip(first, second, strict=True)]
        return first + second
    if key in _TEXTS and first is not None:
        return first if second is None else first + second
    return second
