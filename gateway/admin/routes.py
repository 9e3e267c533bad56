"""What lies where below /admin/v1."""

from collections.abc import Awaitable, Callable

from starlette.responses import Response

from gateway.admin.adapters import delete_adapter, list_adapters
from gateway.admin.audit import list_audit
from gateway.admin.base_models import (
    list_base_models,
    release_base_model,
    reserve_base_model,
)
from gateway.admin.keys import create_key, list_keys, revoke_key
from gateway.admin.nodes import list_nodes
from gateway.admin.tenants import (
    change_tenant,
    create_tenant,
    delete_tenant,
    list_tenants,
    show_tenant,
)
from gateway.admin.tiers import list_tiers

ADMIN_ROUTES: tuple[tuple[str, str, Callable[..., Awaitable[Response]]], ...] = (
    ("GET", "/admin/v1/tenants", list_tenants),
    ("POST", "/admin/v1/tenants", create_tenant),
    ("GET", "/admin/v1/tenants/{name}", show_tenant),
    ("PATCH", "/admin/v1/tenants/{name}", change_tenant),
    ("DELETE", "/admin/v1/tenants/{name}", delete_tenant),
    ("GET", "/admin/v1/tenants/{name}/keys", list_keys),
    ("POST", "/admin/v1/tenants/{name}/keys", create_key),
    ("DELETE", "/admin/v1/keys/{key_id}", revoke_key),
    ("GET", "/admin/v1/adapters", list_adapters),
    ("DELETE", "/admin/v1/adapters/{adapter_id}", delete_adapter),
    ("GET", "/admin/v1/base-models", list_base_models),
    ("PUT", "/admin/v1/base-models/{name}/reservation", reserve_base_model),
    ("DELETE", "/admin/v1/base-models/{name}/reservation", release_base_model),
    ("GET", "/admin/v1/nodes", list_nodes),
    ("GET", "/admin/v1/tiers", list_tiers),
    ("GET", "/admin/v1/audit", list_audit),
)
