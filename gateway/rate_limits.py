"""What a tenant may ask for: requests and tokens a minute, and streams at once.

Counted in this process's memory: of several gateways each counts for itself.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from adapter_sync.tiers import Tier
from gateway.errors import RateLimitError
from gateway.sliding_window import SlidingWindow

_STREAM_RETRY_S = 1.0
"""When to come back for a free stream: nobody knows how long the others take."""


@dataclass(slots=True, kw_only=True)
class _Account:
    """What a tenant has spent."""

    requests: SlidingWindow = field(default_factory=SlidingWindow)
    tokens: SlidingWindow = field(default_factory=SlidingWindow)
    streams: int = 0


class RateLimits:
    """Every tenant's account, on one event loop. The limits themselves are the caller's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)

    @contextmanager
    def admitted(self, tenant_id: str, tier: Tier) -> Iterator[None]:
        """One request, from its arrival to the end of its answer.

        Raises RateLimitError. A refused request does not count, so that the time told is true.
        """
        account = self._accounts[tenant_id]
        now = self._clock()
        _check(account, tier, now)
        account.requests.add(1, now)
        account.streams += 1
        try:
            yield
        finally:
            account.streams -= 1

    def spend_tokens(self, tenant_id: str, tokens: int) -> None:
        """Tokens that a request has used; they may go over the limit."""
        self._accounts[tenant_id].tokens.add(tokens, self._clock())

    def headers(self, tenant_id: str, tier: Tier) -> Mapping[str, str]:
        """OpenAI's x-ratelimit-*, as things are now."""
        account, now = self._accounts[tenant_id], self._clock()
        return {
            f"x-ratelimit-{name}-{kind}": value
            for kind, limit, window in (
                ("requests", tier.requests_per_minute, account.requests),
                ("tokens", tier.tokens_per_minute, account.tokens),
            )
            for name, value in (
                ("limit", str(limit)),
                ("remaining", str(max(0, limit - window.used(now)))),
                ("reset", duration(window.empty_in_s(now))),
            )
        }


def duration(seconds: float) -> str:
    """As OpenAI writes it, rounded up: 0s, 17ms, 1s, 6m0s."""
    milliseconds = math.ceil(seconds * 1000)
    if 0 < milliseconds < 1000:  # noqa: PLR2004  # a second
        return f"{milliseconds}ms"
    minutes, rest_s = divmod(math.ceil(milliseconds / 1000), 60)
    return f"{minutes}m{rest_s}s" if minutes else f"{rest_s}s"


def _check(account: _Account, tier: Tier, now: float) -> None:
    for kind, unit, limit, window in (
        ("requests", "requests per min (RPM)", tier.requests_per_minute, account.requests),
        ("tokens", "tokens per min (TPM)", tier.tokens_per_minute, account.tokens),
    ):
        used = window.used(now)
        if used >= limit:
            wait_s = window.below_in_s(limit, now)
            raise RateLimitError(
                kind=kind, unit=unit, tier=tier.name, limit=limit, used=used, wait_s=wait_s
            )
    if account.streams >= tier.max_streams:
        raise RateLimitError(
            kind="requests",
            unit="requests at once",
            tier=tier.name,
            limit=tier.max_streams,
            used=account.streams,
            wait_s=_STREAM_RETRY_S,
        )
