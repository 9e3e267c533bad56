"""From a client's request to the engine's answer, the same for every endpoint."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from functools import partial

from anyio import to_thread
from fastapi import Request
from starlette.responses import Response

from adapter_sync.record import adapter_id_of
from adapter_sync.secret_key import cache_salt
from gateway.auth import CurrentTenant
from gateway.body import read_body
from gateway.engine_client import EngineRequest
from gateway.errors import AdapterNotReadyError
from gateway.inference.deadline import request_deadline_s
from gateway.inference.document import operation_for
from gateway.inference.endpoints import Endpoint, parse_request
from gateway.inference.relay import Relay
from gateway.openapi import described
from gateway.resolve import Target, resolve
from gateway.services import CurrentServices
from gateway.usage_recorder import Meter


def route_of(endpoint: Endpoint) -> Callable[..., Awaitable[Response]]:
    """The endpoint as FastAPI takes it."""

    async def submit(
        request: Request, tenant: CurrentTenant, services: CurrentServices
    ) -> Response:
        """Check, resolve and hand over to the engine; what it answers passes through."""
        limits = services.limits
        deadline_s = request_deadline_s(request.headers, limits)
        asked = parse_request(
            endpoint,
            await read_body(request, max_bytes=limits.max_body_bytes, idle_s=limits.body_idle_s),
        )
        request.state.log_fields["requested_model"] = asked.requested_model

        async def target() -> Target:
            return await to_thread.run_sync(
                resolve,
                services.registry,
                services.base_models,
                tenant,
                asked.requested_model,
                services.random,
            )

        def engine_request(lora_name: str | None) -> EngineRequest:
            # Never the client's own x-request-id: two of one id would be one to the engine.
            engine_request_id = uuid.uuid4().hex
            request.state.log_fields["engine_request_id"] = engine_request_id
            return EngineRequest(
                endpoint=endpoint.name,
                lora_name=lora_name,
                served_name=asked.requested_model,
                request_id=engine_request_id,
                cache_salt=cache_salt(services.secret_key, tenant.id),
                tenant=tenant.id,
                weight=services.registry.tiers.of(tenant).weight,
                body=asked.body,
            )

        async def renew(refused: EngineRequest) -> tuple[str, EngineRequest] | None:
            found = await target()
            if found.lora_name == refused.lora_name:
                return None
            return found.base_model, engine_request(found.lora_name)

        def meter_of(asked_engine: EngineRequest) -> Meter:
            return services.usage.meter(
                tenant_id=tenant.id,
                key_id=request.state.caller.key.id,
                requested_model=asked.requested_model,
                adapter_id=asked_engine.lora_name and adapter_id_of(asked_engine.lora_name),
                spend=partial(services.rate_limits.spend_tokens, tenant.id),
            )

        first = await _once_loaded(
            target, within_s=limits.loading_wait_s, period_s=limits.adapter_poll_s
        )
        return Relay(
            engine=services.engine,
            base_model=first.base_model,
            request=engine_request(first.lora_name),
            renew=renew,
            stream=asked.stream,
            deadline_s=deadline_s,
            limits=limits,
            meter_of=meter_of,
        )

    submit.__name__ = f"create_{endpoint.name.replace('.', '_')}"
    return described(operation_for(endpoint))(submit)


async def _once_loaded(
    target: Callable[[], Awaitable[Target]], *, within_s: float, period_s: float
) -> Target:
    """The target, when its adapter has been loaded. Raises AdapterNotReadyError after a while."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return await target()
        except AdapterNotReadyError:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(period_s)
