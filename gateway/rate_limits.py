"""What a tenant may ask for: requests and tokens a minute, and streams at once.

Counted for all workers of a gateway together: each tenant's account is a small file that they lock
in turn. It takes 20 to 35 us, so it is done on the event loop.
"""

import fcntl
import math
import os
import struct
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil
import structlog

from adapter_sync.tiers import Tier
from gateway.errors import RateLimitError
from gateway.sliding_window import SlidingWindow

log = structlog.get_logger(__name__)

TOKENS_PERIOD_S = 0.25
"""A stream's tokens go into the account this often, and at its end."""
_STREAM_RETRY_S = 1.0
"""When to come back for a free stream: nobody knows how long the others take."""
_LENGTHS = struct.Struct("<3I")
_MAX_BYTES = 1 << 16


@dataclass(slots=True, kw_only=True)
class _Account:
    """What a tenant has spent; its streams by the worker's process id."""

    requests: SlidingWindow = field(default_factory=SlidingWindow)
    tokens: SlidingWindow = field(default_factory=SlidingWindow)
    streams: dict[int, int] = field(default_factory=dict)

    @classmethod
    def read(cls, raw: bytes) -> Self:
        """The account in a file, a new one in a file that holds none."""
        try:
            return cls._read(raw)
        except (struct.error, ValueError):
            return cls()

    @classmethod
    def _read(cls, raw: bytes) -> Self:
        lengths = _LENGTHS.unpack_from(raw)
        numbers = array("d", raw[_LENGTHS.size : _LENGTHS.size + 8 * sum(lengths)])
        if len(numbers) != sum(lengths):
            raise ValueError(f"{len(numbers)} numbers are not {lengths}")
        requests, tokens, _ = lengths
        workers = map(int, numbers[requests + tokens :])
        return cls(
            requests=SlidingWindow(numbers[:requests]),
            tokens=SlidingWindow(numbers[requests : requests + tokens]),
            streams=dict(zip(workers, workers, strict=True)),
        )

    def written(self) -> bytes:
        """As `read` takes it."""
        streams = array("d", (number for pair in self.streams.items() for number in pair))
        parts = (self.requests.spent, self.tokens.spent, streams)
        return _LENGTHS.pack(*map(len, parts)) + b"".join(part.tobytes() for part in parts)

    @property
    def open_streams(self) -> int:
        """Of all workers."""
        return sum(self.streams.values())

    def begin_stream(self) -> None:
        """One more of this worker."""
        worker = os.getpid()
        self.streams[worker] = self.streams.get(worker, 0) + 1

    def end_stream(self) -> None:
        """One less of this worker."""
        worker = os.getpid()
        left = self.streams.pop(worker, 0) - 1
        if left > 0:
            self.streams[worker] = left

    def forget_dead_workers(self) -> None:
        """Free the streams of those that were killed."""
        self.streams = {
            worker: count for worker, count in self.streams.items() if psutil.pid_exists(worker)
        }


@dataclass(slots=True, kw_only=True)
class _Unwritten:
    """Tokens of a tenant that are not in its account yet: when the first and the last was used."""

    first_at: float
    last_at: float
    tokens: int = 0


class RateLimits:
    """Every tenant's account, on one event loop. The limits themselves are the caller's.

    `folder` is the accounts', the same for all that count together and for nobody else, as the
    clock is. It is made if need be.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._clock = clock
        self._unwritten: dict[str, _Unwritten] = {}

    @contextmanager
    def admitted(self, tenant_id: str, tier: Tier) -> Iterator[None]:
        """One request, from its arrival to the end of its answer.

        Raises RateLimitError. A refused request does not count, so that the time told is true.
        """
        with self._account(tenant_id) as account:
            now = self._clock()
            _check(account, tier, now)
            account.requests.add(1, now)
            account.begin_stream()
        try:
            yield
        finally:
            with self._account(tenant_id) as account:
                account.end_stream()

    def spend_tokens(self, tenant_id: str, tokens: int) -> None:
        """Tokens that a request has used; they may go over the limit."""
        now = self._clock()
        unwritten = self._unwritten.setdefault(tenant_id, _Unwritten(first_at=now, last_at=now))
        unwritten.last_at = now
        unwritten.tokens += tokens
        if now - unwritten.first_at >= TOKENS_PERIOD_S:
            with self._account(tenant_id):
                pass

    def headers(self, tenant_id: str, tier: Tier) -> Mapping[str, str]:
        """OpenAI's x-ratelimit-*, as things are now."""
        with self._account(tenant_id) as account:
            now = self._clock()
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

    @contextmanager
    def _account(self, tenant_id: str) -> Iterator[_Account]:
        """A tenant's account, with this worker's tokens in it, while no other worker has it.

        One that can't be kept is a new one each time: nobody is refused for it.
        """
        file = self._folder / tenant_id
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("rate_limits.not_counted", file=str(file), error=str(error))
            yield _Account()
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            account = _Account.read(os.pread(descriptor, _MAX_BYTES, 0))
            if (unwritten := self._unwritten.pop(tenant_id, None)) is not None:
                account.tokens.add(unwritten.tokens, unwritten.last_at)
            try:
                yield account
            finally:
                _write(descriptor, account.written())
        finally:
            os.close(descriptor)


def _write(descriptor: int, content: bytes) -> None:
    try:
        os.pwrite(descriptor, content, 0)
    except OSError as error:
        log.warning("rate_limits.not_counted", error=str(error))


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
    if account.open_streams >= tier.max_streams:
        account.forget_dead_workers()
    if account.open_streams >= tier.max_streams:
        raise RateLimitError(
            kind="requests",
            unit="requests at once",
            tier=tier.name,
            limit=tier.max_streams,
            used=account.open_streams,
            wait_s=_STREAM_RETRY_S,
        )
