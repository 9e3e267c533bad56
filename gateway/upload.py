"""POST /v1/adapters/upload."""

import re
import time
from collections.abc import Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread
from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import AdapterTooLargeError
from adapter_sync.record import Adapter, AdapterStatus, Tenant
from adapter_sync.tiers import Tier
from gateway.adapter_object import adapter_object
from gateway.auth import CurrentTenant
from gateway.body import body_chunks, content_length, joined
from gateway.limits import Limits
from gateway.services import CurrentServices, Services
from gateway.upload_form import UploadedAdapter, UploadForm

_WAIT = re.compile(r"wait\s*=\s*\"?(\d{1,9})\"?")


async def upload_adapter(
    request: Request, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """Take the file, check it, and wait a while for the engine to have it.

    201 with the adapter as it then is: an upload is never lost because its loading takes long.
    """
    tier = services.registry.tiers.of(tenant)
    check_announced_size(content_length(request), tier, services.limits)
    async with contextmanager_in_threadpool(services.intake.staging_file()) as weights:
        uploaded = await _receive(request, weights, tier, services)
        adapter = await to_thread.run_sync(
            partial(_accept, services, tenant, uploaded, weights), limiter=services.upload_threads
        )
    wait_s = preferred_wait_s(request.headers.getlist("prefer"), services.limits)
    adapter = await _loaded(services, adapter, wait_s)
    headers = {"location": f"/v1/adapters/{adapter.id}"}
    return JSONResponse(adapter_object(adapter), 201, headers)


def check_announced_size(announced_bytes: int | None, tier: Tier, limits: Limits) -> None:
    """Refuse what can't fit before its first byte. Raises AdapterTooLargeError."""
    other_bytes = limits.max_config_bytes + limits.max_form_overhead_bytes
    if announced_bytes is not None and announced_bytes > tier.max_adapter_bytes + other_bytes:
        raise AdapterTooLargeError(limit_bytes=tier.max_adapter_bytes, tier=tier.name)


def preferred_wait_s(prefer: Sequence[str], limits: Limits) -> int:
    """The seconds of `Prefer: wait=N` (RFC 7240), at most the limit; the default without it."""
    for preference in ",".join(prefer).split(","):
        if match := _WAIT.fullmatch(preference.partition(";")[0].strip().lower()):
            return min(int(match.group(1)), limits.max_adapter_wait_s)
    return limits.adapter_wait_s


async def _receive(
    request: Request, weights: Path, tier: Tier, services: Services
) -> UploadedAdapter:
    limits = services.limits
    content_type = request.headers.get("content-type", "")
    form = UploadForm(content_type, weights, tier=tier, limits=limits)
    try:
        async with aclosing(body_chunks(request, idle_s=limits.body_idle_s)) as chunks:
            async for piece in joined(chunks, limits.upload_chunk_bytes):
                await to_thread.run_sync(form.feed, piece, limiter=services.upload_threads)
        return form.finish()
    finally:
        form.close()


def _accept(
    services: Services, tenant: Tenant, uploaded: UploadedAdapter, weights: Path
) -> Adapter:
    return services.intake.accept(
        tenant=tenant,
        name=uploaded.name,
        base_model=uploaded.base_model,
        weights=weights,
        weights_sha256=uploaded.weights_sha256,
        config=uploaded.config,
        lora_alpha=uploaded.lora_alpha,
    )


async def _loaded(services: Services, adapter: Adapter, wait_s: float) -> Adapter:
    """The adapter once it is no longer loading, or as it is when the time is over."""
    deadline = time.monotonic() + wait_s
    while adapter.status is AdapterStatus.LOADING and time.monotonic() < deadline:
        await anyio.sleep(services.limits.adapter_poll_s)
        adapter = await to_thread.run_sync(services.registry.adapter, adapter.tenant_id, adapter.id)
    return adapter
