"""The window and what is admitted by it, with the time in the test's hand."""

import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter_sync.tiers import Tier, load_tiers
from gateway.errors import RateLimitError, answer_for
from gateway.rate_limits import RateLimits, duration
from gateway.sliding_window import PERIOD_S, STEP_S, SlidingWindow

TIER = replace(
    load_tiers().named("shared"), requests_per_minute=2, tokens_per_minute=100, max_streams=10
)


@dataclass(slots=True)
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(tmp_path: Path, clock: Clock) -> RateLimits:
    return RateLimits(tmp_path, clock)


def ask(limits: RateLimits, tenant: str = "acme") -> None:
    with limits.admitted(tenant, TIER):
        pass


def refusal(limits: RateLimits) -> RateLimitError:
    with pytest.raises(RateLimitError) as caught:
        ask(limits)
    return caught.value


def test_an_amount_counts_for_a_minute() -> None:
    window = SlidingWindow()
    window.add(3, 0.0)
    assert (window.used(0.0), window.used(59.9), window.used(60.0)) == (3, 3, 0)


def test_the_window_slides_and_does_not_jump() -> None:
    window = SlidingWindow()
    for second in range(60):
        window.add(1, float(second))
    assert [window.used(60.0 + second) for second in (0, 1, 30, 59)] == [59, 58, 29, 0]


def test_it_tells_when_the_sum_is_below_a_limit() -> None:
    window = SlidingWindow()
    for second in (0.0, 10.0, 20.0):
        window.add(5, second)
    waits = [window.below_in_s(limit, 25.0) for limit in (16, 15, 11, 10, 6, 5, 1)]
    assert waits == [0.0, 35.0, 35.0, 45.0, 45.0, 55.0, 55.0]
    assert window.empty_in_s(25.0) == 55.0
    assert window.empty_in_s(100.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), max_size=60), st.floats(0, 90))
def test_it_never_forgets_too_soon_nor_much_too_late(
    steps: list[tuple[float, int]], after_s: float
) -> None:
    window, now, spent = SlidingWindow(), 0.0, []
    for wait_s, amount in steps:
        now += wait_s
        window.add(amount, now)
        spent.append((now, amount))
    now += after_s
    exact = sum(amount for at, amount in spent if at + PERIOD_S > now)
    at_most = sum(amount for at, amount in spent if at + PERIOD_S + STEP_S > now)
    assert exact <= window.used(now) <= at_most


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 50)), max_size=60), st.integers(1, 500))
def test_the_time_told_is_true(steps: list[tuple[float, int]], limit: int) -> None:
    window, now = SlidingWindow(), 0.0
    for wait_s, amount in steps:
        now += wait_s
        window.add(amount, now)
    wait_s = window.below_in_s(limit, now)
    # A hair later: the sum of two floats may be a hair early.
    assert window.used(now + wait_s + 1e-6) < limit


def test_a_busy_window_stays_small() -> None:
    window = SlidingWindow()
    for step in range(20_000):
        window.add(1, step * 0.01)
    assert window.used(200.0) == pytest.approx(6000, abs=60)
    assert len(window.spent) <= 3 * 121


def test_requests_over_the_limit_are_refused_until_the_oldest_is_a_minute_ago(
    limits: RateLimits, clock: Clock
) -> None:
    ask(limits)
    clock.now += 10
    ask(limits)
    clock.now += 20.5
    error = refusal(limits)
    assert (error.kind, error.code, error.retry_after_ms) == (
        "requests",
        "rate_limit_exceeded",
        29_500,
    )
    assert str(error) == (
        "Rate limit reached for your tier 'shared' on requests per min (RPM): limit 2, used 2. "
        "Please try again in 29.5s."
    )
    clock.now += 29.5
    ask(limits)


def test_a_refused_request_does_not_count(limits: RateLimits, clock: Clock) -> None:
    ask(limits)
    ask(limits)
    for _ in range(10):
        clock.now += 5
        refusal(limits)
    clock.now += 10
    ask(limits)


def test_tokens_are_spent_when_known_and_may_go_over_once(limits: RateLimits, clock: Clock) -> None:
    limits.spend_tokens("acme", 99)
    ask(limits)
    limits.spend_tokens("acme", 500)
    error = refusal(limits)
    assert error.kind == "tokens"
    assert "tokens per min (TPM): limit 100, used 599" in str(error)
    clock.now += 60
    ask(limits)


def test_streams_at_once_are_limited_and_freed(limits: RateLimits) -> None:
    tier = replace(TIER, requests_per_minute=100, max_streams=2)
    with ExitStack() as open_ones:
        open_ones.enter_context(limits.admitted("acme", tier))
        with limits.admitted("acme", tier):
            with pytest.raises(RateLimitError, match="requests at once: limit 2, used 2") as caught:
                open_ones.enter_context(limits.admitted("acme", tier))
            assert (caught.value.kind, caught.value.retry_after_ms) == ("requests", 1000)
        open_ones.enter_context(limits.admitted("acme", tier))


def test_a_failed_request_frees_its_stream(limits: RateLimits) -> None:
    tier = replace(TIER, requests_per_minute=100, max_streams=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), limits.admitted("acme", tier):
            raise ZeroDivisionError


def test_workers_count_together(tmp_path: Path, clock: Clock) -> None:
    one, other = RateLimits(tmp_path, clock), RateLimits(tmp_path, clock)
    ask(one)
    ask(other)
    assert refusal(one).kind == refusal(other).kind == "requests"
    tier = replace(TIER, requests_per_minute=100)
    with one.admitted("acme", tier):
        one.spend_tokens("acme", 60)
        assert other.headers("acme", tier)["x-ratelimit-remaining-tokens"] == "100"
        clock.now += 0.3
        one.spend_tokens("acme", 30)
        assert other.headers("acme", tier)["x-ratelimit-remaining-tokens"] == "10"
        one.spend_tokens("acme", 5)
    assert other.headers("acme", tier)["x-ratelimit-remaining-tokens"] == "5"


def test_streams_at_once_are_all_workers(tmp_path: Path, clock: Clock) -> None:
    tier = replace(TIER, requests_per_minute=100, max_streams=2)
    one, other = RateLimits(tmp_path, clock), RateLimits(tmp_path, clock)
    with one.admitted("acme", tier), other.admitted("acme", tier):
        for each in (one, other):
            with (
                pytest.raises(RateLimitError, match="requests at once"),
                each.admitted("acme", tier),
            ):
                pytest.fail("admitted")
    with other.admitted("acme", tier):
        pass


def test_no_request_too_many_is_admitted_by_workers_in_a_race(tmp_path: Path) -> None:
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(4, mp_context=spawning) as workers:
        admitted = list(workers.map(_ask_often, [tmp_path] * 4))
    assert sum(admitted) == 500
    assert len(admitted) == 4


def _ask_often(folder: Path) -> int:
    limits, admitted = RateLimits(folder), 0
    for _ in range(400):
        try:
            with limits.admitted("acme", replace(TIER, requests_per_minute=500)):
                admitted += 1
        except RateLimitError:
            pass
    return admitted


def test_the_streams_of_a_killed_worker_are_free_again(tmp_path: Path) -> None:
    tier = replace(TIER, requests_per_minute=100, max_streams=1)
    killed = multiprocessing.get_context("spawn").Process(target=_die, args=(tmp_path, tier))
    killed.start()
    killed.join(60)
    assert killed.exitcode == 9
    limits = RateLimits(tmp_path)
    with limits.admitted("acme", tier):
        assert limits.headers("acme", tier)["x-ratelimit-remaining-requests"] == "98"


def _die(folder: Path, tier: Tier) -> None:
    with RateLimits(folder).admitted("acme", tier):
        os._exit(9)


@pytest.mark.parametrize("content", [b"", b"x", bytes(12), b"\xff" * 100, b"\x03" + bytes(31)])
def test_a_file_that_holds_no_account_is_a_new_one(
    tmp_path: Path, limits: RateLimits, content: bytes
) -> None:
    (tmp_path / "acme").write_bytes(content)
    ask(limits)
    ask(limits)
    assert refusal(limits).kind == "requests"


def test_nobody_is_refused_because_the_disk_is(tmp_path: Path, limits: RateLimits) -> None:
    shutil.rmtree(tmp_path)
    for _ in range(5):
        with limits.admitted("acme", TIER):
            limits.spend_tokens("acme", 1000)
            assert limits.headers("acme", TIER)["x-ratelimit-limit-requests"] == "2"
    tmp_path.mkdir()
    assert refusal(limits).kind == "tokens"


def test_tenants_do_not_share_limits(limits: RateLimits) -> None:
    ask(limits)
    ask(limits)
    refusal(limits)
    ask(limits, "rival")


def test_the_headers_are_openais(limits: RateLimits, clock: Clock) -> None:
    assert limits.headers("acme", TIER) == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "0s",
        "x-ratelimit-limit-tokens": "100",
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-reset-tokens": "0s",
    }
    ask(limits)
    clock.now += 30
    limits.spend_tokens("acme", 130)
    clock.now += 29.9
    headers = limits.headers("acme", TIER)
    assert headers["x-ratelimit-remaining-requests"] == "1"
    assert headers["x-ratelimit-reset-requests"] == "100ms"
    assert headers["x-ratelimit-remaining-tokens"] == "0"
    assert headers["x-ratelimit-reset-tokens"] == "31s"


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0s"), (0.0001, "1ms"), (0.9991, "1s"), (0.017, "17ms"), (1, "1s"), (1.2, "2s")],
)
def test_a_duration_is_written_as_openai_does(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(("seconds", "written"), [(59.2, "1m0s"), (60, "1m0s"), (360, "6m0s")])
def test_a_long_duration_has_minutes(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(
    ("wait_s", "seconds", "milliseconds"), [(0.0, "1", "1"), (0.2, "1", "200"), (7.01, "8", "7010")]
)
def test_a_429_says_when_to_come_back_in_whole_seconds(
    wait_s: float, seconds: str, milliseconds: str
) -> None:
    error = RateLimitError(
        kind="tokens", unit="tokens", tier="shared", limit=1, used=1, wait_s=wait_s
    )
    answer = answer_for(error)
    assert (answer.status, answer.type, answer.code) == (429, "tokens", "rate_limit_exceeded")
    assert answer.headers == {"retry-after": seconds, "retry-after-ms": milliseconds}
