"""The composition: routes, middlewares and what they work with."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from random import SystemRandom

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from adapter_sync.blobs import FolderBlobStore
from adapter_sync.errors import LoraServerError, RegistryReplacedError
from adapter_sync.installation import open_installation
from adapter_sync.intake import Intake
from adapter_sync.registry import Registry
from adapter_sync.registry.patience import REQUEST_PATIENCE_S
from adapter_sync.secret_key import load_secret_key
from adapter_sync.settings import Settings
from adapter_sync.tiers import Tiers, load_tiers
from gateway.access_log import AccessLog
from gateway.adapter_events import stream_adapter_events
from gateway.adapters import delete_adapter, list_adapters, show_adapter
from gateway.admin import ADMIN_ROUTES
from gateway.aliases import delete_alias, list_aliases, put_alias, show_alias
from gateway.auth import Authentication, require_admin
from gateway.base_models import BaseModels
from gateway.errors import handle_error
from gateway.health import health, live, ping, ready
from gateway.import_adapter import import_adapter
from gateway.inference.endpoints import INFERENCE_ENDPOINTS
from gateway.inference.submit import route_of
from gateway.key_uses import KeyUses
from gateway.limits import Limits
from gateway.models import list_models, show_model
from gateway.openapi.document import OpenApiDocument
from gateway.rate_limited import RateLimited
from gateway.rate_limits import RateLimits
from gateway.request_id import RequestId
from gateway.revisions import list_revisions, roll_back_adapter
from gateway.services import Services
from gateway.stopping import Stopping
from gateway.triton import TritonClient
from gateway.upload import upload_adapter
from gateway.usage import show_usage
from gateway.usage_recorder import UsageRecorder

_ROUTES: tuple[tuple[str, str, Callable[..., Awaitable[Response]]], ...] = (
    ("GET", "/health/live", live),
    ("GET", "/health/ready", ready),
    ("GET", "/health", health),
    ("GET", "/ping", ping),
    *(("POST", each.path, route_of(each)) for each in INFERENCE_ENDPOINTS),
    ("GET", "/v1/models", list_models),
    # Their ids may hold '/'.
    ("GET", "/v1/models/{model_id:path}", show_model),
    ("GET", "/v1/aliases", list_aliases),
    ("GET", "/v1/aliases/{alias}", show_alias),
    ("PUT", "/v1/aliases/{alias}", put_alias),
    ("DELETE", "/v1/aliases/{alias}", delete_alias),
    ("GET", "/v1/adapters", list_adapters),
    ("POST", "/v1/adapters", import_adapter),
    ("POST", "/v1/adapters/upload", upload_adapter),
    ("GET", "/v1/adapters/{adapter_id}", show_adapter),
    ("DELETE", "/v1/adapters/{adapter_id}", delete_adapter),
    ("GET", "/v1/adapters/{adapter_id}/events", stream_adapter_events),
    ("GET", "/v1/adapters/{adapter_id}/revisions", list_revisions),
    ("POST", "/v1/adapters/{adapter_id}/rollback", roll_back_adapter),
    ("GET", "/v1/usage", show_usage),
)
log = structlog.get_logger()
_REGISTRY_LOOK_PERIOD_S = 2.0
_ANSWERED_ERRORS = (LoraServerError, HTTPException, RequestValidationError, ClientDisconnect)


def create_app(settings: Settings, limits: Limits | None = None) -> FastAPI:
    """The gateway. The registry and Triton are reached for when it starts, not before.

    Raises ConfigurationError when the tiers file is wrong.
    """
    tiers = load_tiers(settings.lora_tiers_file)
    limits = limits or Limits(request_timeout_s=settings.lora_request_timeout_s)
    app = FastAPI(
        lifespan=_lifespan(settings, tiers, limits),
        openapi_url=None,
        redirect_slashes=False,
        exception_handlers=dict.fromkeys(_ANSWERED_ERRORS, handle_error),
    )
    document = OpenApiDocument(app.routes)
    for method, path, endpoint in (*_ROUTES, ("GET", "/openapi.json", document.show_openapi)):
        app.add_api_route(path, endpoint, methods=[method])
    # Without a key there is nothing below /admin to find.
    for method, path, endpoint in ADMIN_ROUTES if settings.lora_admin_key else ():
        app.add_api_route(path, endpoint, methods=[method], dependencies=[Depends(require_admin)])
    # The last one added is the outermost.
    for middleware in (RateLimited, Authentication, AccessLog, RequestId):
        app.add_middleware(middleware)
    return app


@asynccontextmanager
async def open_services(
    settings: Settings, tiers: Tiers, limits: Limits
) -> AsyncIterator[Services]:
    """The gateway's parts, closed at the end. Raises ConfigurationError."""
    registry = await to_thread.run_sync(
        partial(open_installation, settings, tiers, patience_s=REQUEST_PATIENCE_S)
    )
    triton = TritonClient(
        f"{settings.triton_host}:{settings.triton_grpc_port}", settings.triton_metadata
    )
    try:
        blobs = FolderBlobStore(settings.blobs_folder)
        intake = Intake(registry, blobs, settings.staging_folder)
        # What a process left that was killed on an upload's way: itself, or adapter_sync.
        await to_thread.run_sync(intake.remove_leftovers)
        await to_thread.run_sync(intake.remove_unused_blobs)
        usage = UsageRecorder(registry)
        services = Services(
            registry=registry,
            base_models=BaseModels(registry),
            intake=intake,
            engine=triton,
            secret_key=await to_thread.run_sync(load_secret_key, settings.lora_data_dir.resolve()),
            limits=limits,
            rate_limits=RateLimits(settings.rate_limits_folder),
            usage=usage,
            upload_threads=CapacityLimiter(limits.upload_threads),
            hub_threads=CapacityLimiter(limits.hub_threads),
            started_at=int(time.time()),
            random=SystemRandom(),
            admin_key=settings.lora_admin_key,
            key_uses=KeyUses(registry),
            stopping=Stopping(),
            has_answered=set(),
        )
        async with usage.flushing():
            yield services
    finally:
        await triton.close()
        await to_thread.run_sync(registry.close)


@asynccontextmanager
async def _ending_when_replaced(registry: Registry) -> AsyncIterator[None]:
    """End this process when the registry's file is another one: whoever starts it again checks."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(_REGISTRY_LOOK_PERIOD_S)
            try:
                registry.check_place()
            except RegistryReplacedError as error:
                log.error("registry.replaced", error=str(error))  # noqa: TRY400 - its place says nothing
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()


def _lifespan(
    settings: Settings, tiers: Tiers, limits: Limits
) -> Callable[[FastAPI], AbstractAsyncContextManager[dict[str, Services]]]:
    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Services]]:
        async with (
            open_services(settings, tiers, limits) as services,
            services.key_uses.written(),
            _ending_when_replaced(services.registry),
        ):
            with services.stopping.on_signals(settings.lora_stop_notice_s):
                yield {"services": services}

    return lifespan
