"""Side by side with vLLM's own server: the same weights, arguments, adapters and bytes sent.

Two engines on few cores take seconds for an answer, so only every eighth good request is sent; all
of them are with PARITY_EVERY=1: see docs/testing.md.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from stack.vllm_server import running_vllm

from tests.e2e import parity_cases as cases
from tests.e2e.answers import differences, joined_events
from tests.stack_process import BASE_MODEL, Stack, example, upload

EVERY = int(os.environ.get("PARITY_EVERY", "8"))
# Half way between: what is not sent as one kind is more likely sent as the other.
WHOLE, STREAMED = cases.good(stream=False)[::EVERY], cases.good(stream=True)[EVERY // 2 :: EVERY]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The two servers."""

    ours: httpx.Client
    theirs: httpx.Client

    def answers(self, path: str, body: Any) -> tuple[httpx.Response, httpx.Response]:
        sent = {"content" if isinstance(body, bytes) else "json": body}
        with ThreadPoolExecutor(1) as pool:
            theirs = pool.submit(self.theirs.post, path, **sent)
            return self.ours.post(path, **sent), theirs.result()


@pytest.fixture(scope="module")
def pair(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    # The tier of the highest limits: hundreds of requests, one after the other.
    key = stack.new_key("side-by-side", "dedicated")
    with stack.api(key) as ours:
        for name in cases.ADAPTERS:
            assert upload(ours, name, example(name), wait_s=60).json()["status"] == "ready"
        with (
            running_vllm(
                tmp_path_factory.mktemp("vllm"),
                model_json=stack.repository / BASE_MODEL / "1" / "model.json",
                adapters={f"{BASE_MODEL}:{name}": example(name) for name in cases.ADAPTERS},
                # vLLM's own choice is the first cores, which this project's engine has.
                environment={"VLLM_CPU_OMP_THREADS_BIND": str((os.cpu_count() or 1) - 1)},
            ) as vllm,
            httpx.Client(base_url=vllm.url, timeout=120) as theirs,
        ):
            yield Pair(ours=ours, theirs=theirs)


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_a_whole_answer_is_vllms(pair: Pair, case: cases.Case) -> None:
    ours, theirs = pair.answers(case.path, case.body)
    assert (ours.status_code, theirs.status_code) == (200, 200), ours.text + theirs.text
    assert differences(ours.json(), theirs.json()) == []


@pytest.mark.parametrize("case", STREAMED, ids=str)
def test_a_streamed_answer_is_vllms(pair: Pair, case: cases.Case) -> None:
    ours, theirs = pair.answers(case.path, case.body)
    assert (ours.status_code, theirs.status_code) == (200, 200), ours.text + theirs.text
    assert differences(joined_events(ours.text), joined_events(theirs.text)) == []


@pytest.mark.parametrize("case", list(cases.bad()), ids=str)
def test_a_bad_request_is_refused_as_vllm_does_or_as_the_docs_say(
    pair: Pair, case: cases.Case
) -> None:
    ours, theirs = pair.answers(case.path, case.body)
    expected = 400 if case.name in cases.STRICTER else theirs.status_code
    assert expected >= 400, theirs.text
    assert ours.status_code == expected, ours.text + theirs.text
