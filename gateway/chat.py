"""POST /v1/chat/completions."""

import uuid
from functools import partial

from anyio import to_thread
from fastapi import Request
from starlette.responses import Response

from adapter_sync.record import adapter_id_of
from adapter_sync.secret_key import cache_salt
from gateway.auth import CurrentTenant
from gateway.body import read_body
from gateway.chat_document import CHAT_COMPLETION
from gateway.chat_request import parse_chat_request
from gateway.openapi import described
from gateway.relay import Relay
from gateway.resolve import Target, resolve
from gateway.services import CurrentServices
from gateway.triton import EngineRequest
from gateway.usage_recorder import Meter


@described(CHAT_COMPLETION)
async def create_chat_completion(
    request: Request, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """Check, resolve and hand over to the engine; what it answers passes through."""
    limits = services.limits
    chat = parse_chat_request(
        await read_body(request, max_bytes=limits.max_body_bytes, idle_s=limits.body_idle_s)
    )
    request.state.log_fields["requested_model"] = chat.requested_model

    async def target() -> Target:
        return await to_thread.run_sync(
            resolve,
            services.registry,
            services.base_models,
            tenant,
            chat.requested_model,
            services.random,
        )

    def engine_request(lora_name: str | None) -> EngineRequest:
        # Never the client's own x-request-id: two requests of one id would be one to the engine.
        engine_request_id = uuid.uuid4().hex
        request.state.log_fields["engine_request_id"] = engine_request_id
        return EngineRequest(
            endpoint="chat.completions",
            lora_name=lora_name,
            served_name=chat.requested_model,
            request_id=engine_request_id,
            cache_salt=cache_salt(services.secret_key, tenant.id),
            body=chat.body,
        )

    async def renew(refused: EngineRequest) -> tuple[str, EngineRequest] | None:
        found = await target()
        if found.lora_name == refused.lora_name:
            return None
        return found.base_model, engine_request(found.lora_name)

    def meter_of(asked: EngineRequest) -> Meter:
        return services.usage.meter(
            tenant_id=tenant.id,
            key_id=request.state.caller.key.id,
            requested_model=chat.requested_model,
            adapter_id=asked.lora_name and adapter_id_of(asked.lora_name),
            spend=partial(services.rate_limits.spend_tokens, tenant.id),
        )

    first = await target()
    return Relay(
        engine=services.engine,
        base_model=first.base_model,
        request=engine_request(first.lora_name),
        renew=renew,
        stream=chat.stream,
        limits=limits,
        meter_of=meter_of,
    )
