"""How many answers a request's body asks for at once."""

from typing import Any

import pytest

from engine.endpoints import ENDPOINTS


@pytest.mark.parametrize(
    ("endpoint", "body", "count"),
    [
        ("chat.completions", {"messages": []}, 1),
        ("chat.completions", {"messages": [], "n": 4}, 4),
        ("completions", {"prompt": "a"}, 1),
        ("completions", {"prompt": ["a", "b", "c"]}, 3),
        ("completions", {"prompt": ["a", "b", "c"], "n": 2}, 6),
        ("completions", {"prompt": [1, 2, 3]}, 1),
        ("completions", {"prompt": [[1, 2], [3]]}, 2),
        ("embeddings", {"input": ["a", "b"]}, 2),
        ("responses", {"input": [{"role": "user", "content": "a"}] * 3}, 1),
        ("completions", {"prompt": []}, 1),
        ("completions", {"prompt": None, "n": None}, 1),
        ("chat.completions", {"n": "many"}, 1),
        ("chat.completions", {"n": -1}, 1),
        ("chat.completions", {"n": True}, 1),
    ],
)
def test_answers_are_counted_before_vllm_reads_the_body(
    endpoint: str, body: dict[str, Any], count: int
) -> None:
    assert ENDPOINTS[endpoint].sequences(body) == count


def test_what_the_engine_does_not_work_on_needs_no_turn() -> None:
    unqueued = {name for name, each in ENDPOINTS.items() if not each.queued}
    assert unqueued == {"tokenize", "detokenize", "messages.count_tokens"}
