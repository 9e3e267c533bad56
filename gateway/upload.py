"""POST /v1/adapters/upload."""

from contextlib import aclosing
from functools import partial
from pathlib import Path

from anyio import to_thread
from fastapi import Request
from fastapi.concurrency import contextmanager_in_threadpool
from starlette.responses import Response

from adapter_sync.errors import AdapterTooLargeError
from adapter_sync.record import Adapter, Overwrite, Tenant
from adapter_sync.sources.bundle import unbundled
from adapter_sync.sources.files import AdapterFiles
from adapter_sync.tiers import Tier
from gateway.adapter_object import adapter_answer
from gateway.auth import CurrentTenant
from gateway.body import body_chunks, content_length, joined
from gateway.if_match import if_match
from gateway.limits import Limits
from gateway.loading import loaded, wait_deadline
from gateway.new_adapter import NEW_ADAPTER_ERRORS, new_adapter_answers
from gateway.openapi import Body, Operation, described
from gateway.openapi.headers import IF_MATCH, PREFER
from gateway.services import CurrentServices, Services
from gateway.upload_form import FORM_SCHEMA, UploadedAdapter, UploadForm


@described(
    Operation(
        tag="Adapters",
        summary="Upload an adapter",
        description="The answer comes when the adapter is ready or has failed, or when the time of "
        "`Prefer` is over: see its `status`.",
        parameters=(IF_MATCH, PREFER),
        body=Body(
            shape=FORM_SCHEMA,
            media_type="multipart/form-data",
            example={
                "name": "my-finetuned-v3",
                "base_model": "smollm2-135m-instruct",
                "file": "@adapter_model.safetensors",
                "config": "@adapter_config.json",
            },
            encoding={
                "file": {"contentType": "application/octet-stream"},
                "config": {"contentType": "application/json"},
            },
        ),
        answers=new_adapter_answers({200: "A new revision.", 201: "A new adapter."}),
        errors=NEW_ADAPTER_ERRORS,
    )
)
async def upload_adapter(
    request: Request, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """Take the file, check it, and wait a while for the engine to have it.

    201 with the adapter as it then is, 200 when this is a new revision of one: an upload is never
    lost because its loading takes long.
    """
    tier = services.registry.tiers.of(tenant)
    check_announced_size(content_length(request), tier, services.limits)
    condition = if_match(request.headers.getlist("if-match"))
    async with contextmanager_in_threadpool(services.intake.staging_file()) as weights:
        uploaded = await _receive(request, weights, tier, services)
        adapter = await to_thread.run_sync(
            partial(_accept, services, tenant, uploaded, weights, condition),
            limiter=services.upload_threads,
        )
    status = 201 if adapter.revision.is_first else 200
    adapter = await loaded(services, adapter, wait_deadline(request, services.limits))
    return adapter_answer(
        adapter, status=status, headers={"location": f"/v1/adapters/{adapter.id}"}
    )


def check_announced_size(announced_bytes: int | None, tier: Tier, limits: Limits) -> None:
    """Refuse what can't fit before its first byte. Raises AdapterTooLargeError."""
    other_bytes = limits.max_config_bytes + limits.max_form_overhead_bytes
    if announced_bytes is not None and announced_bytes > tier.max_adapter_bytes + other_bytes:
        raise AdapterTooLargeError(limit_bytes=tier.max_adapter_bytes, tier=tier.name)


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
    services: Services,
    tenant: Tenant,
    uploaded: UploadedAdapter,
    weights: Path,
    condition: frozenset[str] | None,
) -> Adapter:
    received = AdapterFiles(
        weights=weights,
        weights_sha256=uploaded.weights_sha256,
        config=uploaded.config,
        lora_alpha=uploaded.lora_alpha,
    )
    with unbundled(
        received,
        tier=services.registry.tiers.of(tenant),
        staging_file=services.intake.staging_file,
    ) as files:
        return services.intake.accept(
            tenant=tenant,
            name=uploaded.name,
            base_model=uploaded.base_model,
            files=files,
            overwrite=Overwrite(replace=uploaded.replace, if_match=condition),
        )
