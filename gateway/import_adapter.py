"""POST /v1/adapters: an adapter from a Hugging Face repo."""

import re
import time
from functools import partial
from typing import Annotated

import anyio
from anyio import to_thread
from fastapi import Request
from pydantic import Field, SecretStr, field_validator
from starlette.responses import Response

from adapter_sync.errors import (
    FetchInProgressError,
    HubUnavailableError,
    InvalidRepoError,
    RepoNotFoundError,
)
from adapter_sync.fetches import DEFAULT_REVISION, Fetch, FetchStage, HubRepo
from adapter_sync.record import ADAPTER_NAME, Adapter, Overwrite, Tenant
from adapter_sync.secret_key import seal
from adapter_sync.sources.hub import pin
from gateway.adapter_object import adapter_answer
from gateway.auth import CurrentTenant
from gateway.if_match import if_match
from gateway.json_body import JsonBody, read_json_body
from gateway.loading import loaded, wait_deadline
from gateway.new_adapter import NEW_ADAPTER_ERRORS, new_adapter_answers
from gateway.openapi import Body, Operation, described
from gateway.openapi.headers import IF_MATCH, PREFER
from gateway.services import CurrentServices, Services

_TOKEN = re.compile(r"[!-~]{1,512}")
_OK, _CREATED, _ACCEPTED = 200, 201, 202


class AdapterImport(JsonBody):
    """Where the adapter lies and what it is to be called; `hf_token` is for private repos."""

    name: Annotated[str, Field(json_schema_extra={"pattern": f"^{ADAPTER_NAME.pattern}$"})]
    base_model: str
    repo: Annotated[str, Field(description="organisation/name")]
    revision: str = DEFAULT_REVISION
    subfolder: str | None = None
    hf_token: SecretStr | None = None
    replace: bool = False

    @field_validator("hf_token")
    @classmethod
    def _is_header_safe(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None and _TOKEN.fullmatch(token.get_secret_value()) is None:
            raise ValueError("expected up to 512 printable characters without blanks")
        return token


@described(
    Operation(
        tag="Adapters",
        summary="Bring an adapter from a Hugging Face repo",
        parameters=(IF_MATCH, PREFER),
        body=Body(
            shape=AdapterImport,
            example={
                "name": "my-finetuned-v4",
                "base_model": "smollm2-135m-instruct",
                "repo": "my-org/llama-lora-v4",
                "revision": "main",
            },
        ),
        answers=new_adapter_answers(
            {
                _OK: "Here, as a new revision.",
                _CREATED: "Here, or failed: see `status`.",
                _ACCEPTED: "On its way: see `progress`.",
            }
        ),
        errors=(
            *NEW_ADAPTER_ERRORS,
            FetchInProgressError,
            HubUnavailableError,
            InvalidRepoError,
            RepoNotFoundError,
        ),
    )
)
async def import_adapter(
    request: Request, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """Look at the repo, have it fetched, and wait a while for the engine to have the adapter.

    201 (200 for a new revision) when the adapter is here, else 202 with how far it is. Raises
    InvalidRequestError, InvalidRepoError, RepoNotFoundError, InvalidAdapterError,
    AdapterTooLargeError, HubUnavailableError and what Registry.create_fetch raises.
    """
    wanted = await read_json_body(request, services.limits, AdapterImport)
    condition = if_match(request.headers.getlist("if-match"))
    fetch = await to_thread.run_sync(
        partial(_begin, services, tenant, wanted, condition), limiter=services.hub_threads
    )
    deadline = wait_deadline(request, services.limits)
    has_arrived = await _arrived(services, fetch, deadline)
    adapter, rest = await to_thread.run_sync(
        services.registry.adapter_or_fetch, tenant.id, fetch.id
    )
    if adapter is not None and has_arrived:
        adapter = await loaded(services, adapter, deadline)
    status = _status(adapter) if has_arrived else _ACCEPTED
    headers = {"location": f"/v1/adapters/{fetch.id}"}
    return adapter_answer(adapter, rest, status=status, headers=headers)


def _status(adapter: Adapter | None) -> int:
    return _OK if adapter is not None and not adapter.revision.is_first else _CREATED


def _begin(
    services: Services, tenant: Tenant, wanted: AdapterImport, condition: frozenset[str] | None
) -> Fetch:
    source = HubRepo(repo=wanted.repo, revision=wanted.revision, subfolder=wanted.subfolder)
    token = None if wanted.hf_token is None else wanted.hf_token.get_secret_value()
    services.registry.check_new_adapter(tenant, wanted.name, wanted.base_model)
    return services.registry.create_fetch(
        tenant=tenant,
        name=wanted.name,
        base_model=wanted.base_model,
        pinned=pin(source, token=token, tier=services.registry.tiers.of(tenant)),
        overwrite=Overwrite(replace=wanted.replace, if_match=condition),
        sealed_token=None if token is None else seal(services.secret_key, token),
    )


async def _arrived(services: Services, fetch: Fetch, deadline: float) -> bool:
    """Whether the adapter is here before the time is over, and before the fetch fails."""
    known: Fetch | None = fetch
    while known is not None and known.stage is not FetchStage.FAILED:
        if time.monotonic() >= deadline:
            return False
        await anyio.sleep(services.limits.adapter_poll_s)
        known = await to_thread.run_sync(services.registry.fetch, fetch.tenant_id, fetch.id)
    return known is None
