"""Waiting until the engine has an adapter's newest revision, as long as the client prefers."""

import re
import time
from collections.abc import Sequence

import anyio
from anyio import to_thread
from fastapi import Request

from adapter_sync.record import Adapter, AdapterStatus
from gateway.limits import Limits
from gateway.services import Services

_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?")


def preferred_wait_s(prefer: Sequence[str], limits: Limits) -> int:
    """The seconds of `Prefer: wait=N` (RFC 7240), at most the limit; the default without it."""
    for preference in ",".join(prefer).split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0].strip().lower()):
            return min(int(match.group(1)), limits.max_adapter_wait_s)
    return limits.adapter_wait_s


def wait_deadline(request: Request, limits: Limits) -> float:
    """When to answer at the latest, in time.monotonic()'s seconds, counted from now."""
    return time.monotonic() + preferred_wait_s(request.headers.getlist("prefer"), limits)


async def loaded(services: Services, adapter: Adapter, deadline: float) -> Adapter:
    """The adapter once it is no longer loading, or as it is when the time is over.

    `deadline` is time.monotonic()'s. The status is the newest revision's: an earlier one that
    serves meanwhile ends no waiting.
    Raises AdapterNotFoundError when it is deleted meanwhile.
    """
    while adapter.status is AdapterStatus.LOADING and time.monotonic() < deadline:
        await anyio.sleep(services.limits.adapter_poll_s)
        adapter = await to_thread.run_sync(services.registry.adapter, adapter.tenant_id, adapter.id)
    return adapter
