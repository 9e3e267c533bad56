"""The registry: tenants, keys, base models and adapters, the truth that the rest projects.

Each method is one transaction. Any thread of any process may call any of them at any time.
"""

from collections.abc import Collection
from datetime import date
from typing import Self

from sqlalchemy import select

from adapter_sync.record import (
    Adapter,
    AdapterStatus,
    BaseModel,
    Revision,
    Tenant,
    UsageBatch,
    UsageBucket,
    UsageField,
)
from adapter_sync.registry.adapters import (
    AdapterState,
    delete_deleting,
    insert_adapter,
    is_blob_used,
    mark_deleting,
    select_adapter,
    select_adapter_named,
    select_adapters,
    select_adapters_on,
    update_state,
)
from adapter_sync.registry.base_models import (
    delete_base_model,
    select_base_model,
    select_base_models,
    upsert_base_model,
)
from adapter_sync.registry.database import Database
from adapter_sync.registry.tables import change_counter
from adapter_sync.registry.tenants import (
    insert_key,
    insert_tenant,
    select_tenant,
    select_tenant_of_key,
    select_tenants,
)
from adapter_sync.registry.usage import add_usage, select_usage
from adapter_sync.tiers import Tiers, load_tiers


class Registry:
    """The registry on one database."""

    def __init__(self, database: Database, tiers: Tiers) -> None:
        self._database = database
        self.tiers = tiers

    @classmethod
    def open(cls, url: str, tiers: Tiers | None = None) -> Self:
        """The registry at SQLAlchemy's URL, made when it isn't there and at the newest schema.

        Without `tiers` it goes by the built-in ones. Safe when several processes open it at once.
        Raises ConfigurationError.
        """
        return cls(Database.open(url), tiers or load_tiers())

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    def change_counter(self) -> int:
        """Grows with every committed change to adapters or base models, whoever makes it."""
        with self._database.reading() as connection:
            value: int = connection.execute(select(change_counter.c.value)).scalar_one()
            return value

    def create_tenant(self, name: str, tier: str) -> Tenant:
        """Raises InvalidNameError, UnknownTierError, TenantExistsError."""
        with self._database.writing() as connection:
            return insert_tenant(connection, name=name, tier=tier, tiers=self.tiers)

    def tenant(self, name: str) -> Tenant:
        """Raises TenantNotFoundError."""
        with self._database.reading() as connection:
            return select_tenant(connection, name)

    def tenants(self) -> list[Tenant]:
        """Every tenant, sorted by name."""
        with self._database.reading() as connection:
            return select_tenants(connection)

    def create_key(self, tenant_name: str) -> str:
        """A new key, `pk-<id>-<secret>`; nobody can ask for it again.

        Raises TenantNotFoundError.
        """
        with self._database.writing() as connection:
            return insert_key(connection, tenant_name)

    def tenant_of_key(self, api_key: str) -> Tenant:
        """Raises InvalidApiKeyError."""
        with self._database.reading() as connection:
            return select_tenant_of_key(connection, api_key)

    def put_base_model(self, base: BaseModel) -> None:
        """Add it, or replace the one of its name where it differs."""
        with self._database.changing() as connection:
            if not upsert_base_model(connection, base):
                connection.rollback()

    def base_models(self) -> list[BaseModel]:
        """Every base model, sorted by name."""
        with self._database.reading() as connection:
            return select_base_models(connection)

    def base_model(self, name: str) -> BaseModel:
        """Raises BaseModelNotFoundError."""
        with self._database.reading() as connection:
            return select_base_model(connection, name)

    def remove_base_model(self, name: str) -> None:
        """Remove it where it is there; its adapters stay."""
        with self._database.changing() as connection:
            if not delete_base_model(connection, name):
                connection.rollback()

    def create_adapter(
        self, *, tenant: Tenant, name: str, base_model: str, revision: Revision
    ) -> Adapter:
        """A new adapter, loading. Adapters being deleted neither count nor hold their name.

        Raises InvalidNameError, BaseModelNotFoundError, AdapterExistsError, AdapterLimitError,
        TierMissingError.
        """
        with self._database.changing() as connection:
            return insert_adapter(
                connection,
                tenant=tenant,
                name=name,
                base_model=base_model,
                revision=revision,
                tiers=self.tiers,
            )

    def adapter(self, tenant_id: str, adapter_id: str) -> Adapter:
        """Raises AdapterNotFoundError, also for another tenant's and for one being deleted."""
        with self._database.reading() as connection:
            return select_adapter(connection, tenant_id=tenant_id, adapter_id=adapter_id)

    def find_adapter(self, tenant_id: str, base_model: str, name: str) -> Adapter:
        """Raises AdapterNotFoundError, also for one being deleted."""
        with self._database.reading() as connection:
            return select_adapter_named(
                connection, tenant_id=tenant_id, base_model=base_model, name=name
            )

    def adapters(self, tenant_id: str | None = None) -> list[Adapter]:
        """A tenant's adapters, or every tenant's; newest first, without those being deleted."""
        with self._database.reading() as connection:
            return select_adapters(connection, tenant_id)

    def adapters_on(self, base_model: str) -> list[Adapter]:
        """A base model's adapters of every tenant and in every status, sorted by id."""
        with self._database.reading() as connection:
            return select_adapters_on(connection, base_model)

    def delete_adapter(self, tenant_id: str, adapter_id: str) -> Adapter:
        """The adapter, deleting from now on. Raises AdapterNotFoundError."""
        with self._database.changing() as connection:
            return mark_deleting(connection, tenant_id=tenant_id, adapter_id=adapter_id)

    def set_adapter_status(
        self,
        adapter_id: str,
        digest: str,
        status: AdapterStatus,
        *,
        error_code: str | None = None,
        error_message: str | None = None,
    ) -> bool:
        """Whether that changed anything.

        It doesn't once the adapter has another content than `digest`, or is being deleted.
        """
        state = AdapterState(status=status, error_code=error_code, error_message=error_message)
        with self._database.changing() as connection:
            changed = update_state(connection, adapter_id, digest, state)
            if not changed:
                connection.rollback()
            return changed

    def forget_adapter(self, adapter_id: str) -> list[str]:
        """Remove a deleting adapter; the blobs (SHA-256) that no revision uses any more, sorted.

        Nothing happens to an adapter that isn't there or isn't being deleted.
        """
        with self._database.changing() as connection:
            unused = delete_deleting(connection, adapter_id)
            if unused is None:
                connection.rollback()
            return list(unused or ())

    def blob_in_use(self, digest: str) -> bool:
        """Whether an adapter's revision has this blob (SHA-256) as its config or its weights."""
        with self._database.reading() as connection:
            return is_blob_used(connection, digest)

    def add_usage(self, batch: UsageBatch) -> bool:
        """Add a batch, with its adapters' last use; whether it was not there already.

        All of it is added or nothing, and the same batch may come again after any error.
        """
        with self._database.writing() as connection:
            return add_usage(connection, batch)

    def usage(
        self, tenant_id: str, *, first: date, last: date, group_by: Collection[UsageField]
    ) -> list[UsageBucket]:
        """What a tenant used from the first day to the last one, sorted by what it's grouped by."""
        with self._database.reading() as connection:
            return select_usage(
                connection, tenant_id=tenant_id, first=first, last=last, group_by=group_by
            )
