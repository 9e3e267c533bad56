"""Tenants and their keys, inside a transaction of the caller."""

from datetime import UTC, datetime

from sqlalchemy import Connection, Row, insert, select
from sqlalchemy.exc import IntegrityError

from adapter_sync.errors import InvalidApiKeyError, TenantExistsError, TenantNotFoundError
from adapter_sync.record import Tenant, check_tenant_name
from adapter_sync.registry.keys import key_id_of, key_matches, key_sha256, new_id, new_key
from adapter_sync.registry.tables import api_keys, tenants
from adapter_sync.tiers import Tiers

WRONG_KEY = (
    "Incorrect API key provided. Send a key as 'Authorization: Bearer pk-…'; the operator makes "
    "one with `loractl key create`."
)


def insert_tenant(connection: Connection, *, name: str, tier: str, tiers: Tiers) -> Tenant:
    """Raises InvalidNameError, UnknownTierError, TenantExistsError."""
    tenant = Tenant(
        id=new_id("ten_"),
        name=check_tenant_name(name),
        tier=tiers.named(tier).name,
        created_at=datetime.now(UTC),
    )
    try:
        connection.execute(
            insert(tenants).values(
                id=tenant.id, name=tenant.name, tier=tenant.tier, created_at=tenant.created_at
            )
        )
    except IntegrityError as error:
        raise TenantExistsError(name=name) from error
    return tenant


def select_tenant(connection: Connection, name: str) -> Tenant:
    """Raises TenantNotFoundError."""
    row = connection.execute(select(tenants).where(tenants.c.name == name)).first()
    if row is None:
        raise TenantNotFoundError(name=name)
    return _tenant(row)


def select_tenants(connection: Connection) -> list[Tenant]:
    """Every tenant, sorted by name."""
    return [_tenant(row) for row in connection.execute(select(tenants).order_by(tenants.c.name))]


def insert_key(connection: Connection, tenant_name: str) -> str:
    """A new key's text. Raises TenantNotFoundError."""
    tenant, key = select_tenant(connection, tenant_name), new_key()
    connection.execute(
        insert(api_keys).values(
            id=key.id,
            tenant_id=tenant.id,
            key_sha256=key_sha256(key.text),
            created_at=datetime.now(UTC),
        )
    )
    return key.text


def select_tenant_of_key(connection: Connection, api_key: str) -> Tenant:
    """Raises InvalidApiKeyError, in the same words whatever is wrong with the key."""
    key_id = key_id_of(api_key)
    if key_id is None:
        raise InvalidApiKeyError(WRONG_KEY)
    query = select(tenants, api_keys.c.key_sha256).join_from(api_keys, tenants)
    row = connection.execute(query.where(api_keys.c.id == key_id)).first()
    if row is None or not key_matches(api_key, row.key_sha256):
        raise InvalidApiKeyError(WRONG_KEY)
    return _tenant(row)


def _tenant(row: Row[tuple[object, ...]]) -> Tenant:
    return Tenant(id=row.id, name=row.name, tier=row.tier, created_at=row.created_at)
