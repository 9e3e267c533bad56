"""Tenants' keys, inside a transaction of the caller."""

from collections.abc import Collection
from datetime import UTC, datetime

from sqlalchemy import Connection, Row, insert, or_, select, update

from adapter_sync.errors import InvalidApiKeyError, KeyNotFoundError
from adapter_sync.record import (
    LAST_USE_RESOLUTION,
    ApiKey,
    Caller,
    IssuedKey,
    Page,
    Tenant,
    check_key_name,
)
from adapter_sync.registry.keys import key_id_of, key_matches, key_sha256, new_key
from adapter_sync.registry.pages import newest_first, page_of
from adapter_sync.registry.tables import api_keys, tenants
from adapter_sync.registry.tenants import LIVE, tenant_of

WRONG_KEY = (
    "Incorrect API key provided. Send a key as 'Authorization: Bearer pk-…'; the operator makes "
    "one with `loractl key create`."
)


def insert_key(
    connection: Connection, tenant: Tenant, *, name: str | None, expires_at: datetime | None
) -> IssuedKey:
    """A new key. Raises InvalidNameError."""
    new = new_key()
    key = ApiKey(
        id=new.id,
        tenant_id=tenant.id,
        name=None if name is None else check_key_name(name),
        created_at=datetime.now(UTC),
        expires_at=expires_at,
        revoked_at=None,
        last_used_at=None,
    )
    connection.execute(
        insert(api_keys).values(
            id=key.id,
            tenant_id=key.tenant_id,
            key_sha256=key_sha256(new.text),
            created_at=key.created_at,
            name=key.name,
            expires_at=key.expires_at,
        )
    )
    return IssuedKey(key=key, text=new.text)


def select_caller(connection: Connection, api_key: str) -> Caller:
    """Raises InvalidApiKeyError, in the same words whatever is wrong with the key."""
    key_id = key_id_of(api_key)
    if key_id is None:
        raise InvalidApiKeyError(WRONG_KEY)
    of_key = api_keys.c.id == key_id
    row = connection.execute(select(api_keys).where(of_key)).first()
    if row is None or not key_matches(api_key, row.key_sha256):
        raise InvalidApiKeyError(WRONG_KEY)
    key = _key_of(row)
    owner = connection.execute(select(tenants).where(tenants.c.id == key.tenant_id, LIVE)).first()
    if owner is None or not key.is_valid(datetime.now(UTC)):
        raise InvalidApiKeyError(WRONG_KEY)
    return Caller(tenant=tenant_of(owner), key=key)


def select_key(connection: Connection, key_id: str) -> ApiKey:
    """Raises KeyNotFoundError, also for a deleted tenant's."""
    query = select(api_keys).join(tenants).where(api_keys.c.id == key_id, LIVE)
    row = connection.execute(query).first()
    if row is None:
        raise KeyNotFoundError(key_id=key_id)
    return _key_of(row)


def select_keys(
    connection: Connection, tenant: Tenant, *, limit: int | None, after: str | None
) -> Page[ApiKey]:
    """A tenant's keys, the newest first, also those that are no longer valid.

    Raises UnknownCursorError.
    """
    query = newest_first(
        connection,
        select(api_keys).where(api_keys.c.tenant_id == tenant.id),
        api_keys.c.created_at,
        api_keys.c.id,
        after=after,
    )
    return page_of(connection, query, _key_of, limit=limit)


def revoke(connection: Connection, key: ApiKey) -> bool:
    """Whether it was not revoked before."""
    revoked = connection.execute(
        update(api_keys)
        .where(api_keys.c.id == key.id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=datetime.now(UTC))
    )
    return revoked.rowcount > 0


def update_last_use(connection: Connection, key_ids: Collection[str], at: datetime) -> None:
    """Write the time down where the one that is there is older than LAST_USE_RESOLUTION."""
    is_stale = or_(
        api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at <= at - LAST_USE_RESOLUTION
    )
    connection.execute(
        update(api_keys).where(api_keys.c.id.in_(sorted(key_ids)), is_stale).values(last_used_at=at)
    )


def _key_of(row: Row[tuple[object, ...]]) -> ApiKey:
    return ApiKey(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
