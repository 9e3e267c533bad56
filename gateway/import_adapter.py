"""POST /v1/adapters: an adapter from a Hugging Face repo."""

import time
from functools import partial

import anyio
from anyio import to_thread
from fastapi import Request
from pydantic import SecretStr
from starlette.responses import JSONResponse, Response

from adapter_sync.errors import AdapterNotFoundError
from adapter_sync.fetches import DEFAULT_REVISION, Fetch, FetchStage, HubRepo
from adapter_sync.record import Adapter, Overwrite, Tenant
from adapter_sync.secret_key import seal
from adapter_sync.sources.hub import pin
from adapter_sync.tiers import tier_named
from gateway.adapter_object import adapter_answer, fetch_object
from gateway.auth import CurrentTenant
from gateway.if_match import if_match
from gateway.json_body import JsonBody, read_json_body
from gateway.loading import loaded, preferred_wait_s
from gateway.services import CurrentServices, Services

_ACCEPTED = 202


class AdapterImport(JsonBody):
    """Where the adapter lies and what it is to be called; `hf_token` is for private repos."""

    name: str
    base_model: str
    repo: str
    revision: str = DEFAULT_REVISION
    subfolder: str | None = None
    hf_token: SecretStr | None = None
    replace: bool = False


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
        partial(_begin, services, tenant, wanted, condition), limiter=services.upload_threads
    )
    prefer = request.headers.getlist("prefer")
    deadline = time.monotonic() + preferred_wait_s(prefer, services.limits)
    arrived = await _arrived(services, fetch, deadline)
    headers = {"location": f"/v1/adapters/{fetch.adapter_id}"}
    if isinstance(arrived, Fetch):
        return JSONResponse(fetch_object(arrived), _ACCEPTED, headers)
    status = 201 if arrived.revision.number == 1 else 200
    return adapter_answer(await loaded(services, arrived, deadline), status, headers)


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
        pinned=pin(source, token=token, tier=tier_named(tenant.tier)),
        overwrite=Overwrite(replace=wanted.replace, if_match=condition),
        sealed_token=None if token is None else seal(services.secret_key, token),
    )


async def _arrived(services: Services, fetch: Fetch, deadline: float) -> Adapter | Fetch:
    """The adapter when it is here, else the fetch when it failed or the time is over.

    Raises AdapterNotFoundError when it is deleted meanwhile.
    """
    while fetch.stage is not FetchStage.FAILED and time.monotonic() < deadline:
        await anyio.sleep(services.limits.adapter_poll_s)
        now = await to_thread.run_sync(services.registry.fetch, fetch.tenant_id, fetch.adapter_id)
        if now is None:
            return await to_thread.run_sync(
                services.registry.adapter, fetch.tenant_id, fetch.adapter_id
            )
        fetch = now
    return fetch
