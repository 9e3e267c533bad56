"""The registry: tenants, keys, base models, adapters, aliases: the truth that the rest projects.

Each method is one transaction. Any thread of any process may call any of them at any time.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from datetime import date, datetime
from pathlib import Path
from typing import Self

from sqlalchemy import Connection

from adapter_sync.errors import AdapterNotFoundError, OwnBaseModelError, TenantHasAdaptersError
from adapter_sync.fetches import Fetch, FetchStage, PinnedRepo
from adapter_sync.record import (
    BEFORE_ALL,
    CREATE_ONLY,
    SYSTEM,
    Adapter,
    AdapterStatus,
    Alias,
    AliasTarget,
    ApiKey,
    AuditEntry,
    BaseModel,
    Caller,
    DesiredChanges,
    IssuedKey,
    KeptRevision,
    Node,
    Overwrite,
    Page,
    Residency,
    Revision,
    Tenant,
    UsageBatch,
    UsageBucket,
    UsageField,
    check_adapter_name,
)
from adapter_sync.registry.adapters import (
    AdapterFilter,
    AdapterState,
    delete_deleting,
    find_adapter,
    mark_deleting,
    put_adapter,
    require_room,
    select_adapter,
    select_adapter_named,
    select_adapters,
    select_any_adapter,
    select_desired,
    select_every_adapter_page,
    update_state,
)
from adapter_sync.registry.aliases import delete_alias, select_alias, select_aliases, upsert_alias
from adapter_sync.registry.api_keys import (
    insert_key,
    revoke,
    select_caller,
    select_key,
    select_keys,
    update_last_use,
)
from adapter_sync.registry.audit import insert_entry, select_entries
from adapter_sync.registry.base_models import (
    delete_base_model,
    replace_reservation,
    require_base_model_for_adapters,
    select_base_model,
    select_base_model_for_adapters,
    select_base_models,
    upsert_base_model,
)
from adapter_sync.registry.copying import copy_rows, is_empty, make_anew
from adapter_sync.registry.database import Database, Remembered, Watch, select_change_counter
from adapter_sync.registry.fetches import (
    ClaimedFetch,
    claim_fetch,
    count_new,
    delete_fetch,
    fail_fetch,
    insert_fetch,
    is_pending,
    reopen_fetches,
    select_fetch,
    select_fetch_named,
    select_fetches,
    set_progress,
)
from adapter_sync.registry.installation import (
    insert_installation_id,
    select_installation_id,
    select_named_blobs,
)
from adapter_sync.registry.listing import AdapterQuery, select_adapter_page
from adapter_sync.registry.nodes import (
    change_residencies,
    select_nodes,
    select_residencies,
    upsert_node,
)
from adapter_sync.registry.patience import PATIENCE_S
from adapter_sync.registry.revisions import (
    contents_with_blob,
    earlier_revision,
    insert_revision,
    prune_revisions,
    require_match,
    select_revisions,
    unused_blobs,
)
from adapter_sync.registry.tenants import (
    insert_tenant,
    mark_deleted,
    require_live,
    select_tenant,
    select_tenant_with_id,
    select_tenants,
    update_tier,
)
from adapter_sync.registry.usage import add_usage, select_usage
from adapter_sync.tiers import Tiers, load_tiers


class Registry:
    """The registry on one database, used by one actor: each change is in the audit as its own."""

    def __init__(self, database: Database, tiers: Tiers, actor: str = SYSTEM) -> None:
        self._database = database
        self.tiers = tiers
        self._actor = actor
        self._change_counter = Remembered(database, select_change_counter)
        self._has_pending_fetch = Remembered(database, is_pending)

    @classmethod
    def open(cls, url: str, tiers: Tiers | None = None, *, patience_s: float = PATIENCE_S) -> Self:
        """The registry at SQLAlchemy's URL, made when it isn't there and at the newest schema.

        Without `tiers` it goes by the built-in ones. Who finds the database locked waits for
        `patience_s`. Safe when several processes open it at once. Raises ConfigurationError.
        """
        return cls(Database.open(url, patience_s=patience_s), tiers or load_tiers())

    def acting_as(self, actor: str) -> Self:
        """The same registry, with the same connections, for another actor."""
        return type(self)(self._database, self.tiers, actor)

    def close(self) -> None:
        """Close every connection."""
        self._database.close()

    @property
    def place(self) -> str:
        """Names the database, without its password."""
        return self._database.place

    def installation_id(self) -> str | None:
        """The id that its blob store has too; None before the first start that writes one."""
        with self._database.reading() as connection:
            return select_installation_id(connection)

    def ensure_installation_id(self, proposed: str) -> str:
        """The id, which becomes `proposed` where there is none."""
        with self._database.writing() as connection:
            known = select_installation_id(connection)
            if known is None:
                insert_installation_id(connection, proposed)
            return known or proposed

    def copy_to(self, file: Path) -> None:
        """Copy everything, as it is at one moment, into an SQLite file that is not there yet."""
        with (
            closing(Database.open(f"sqlite:///{file}")) as copy,
            self._database.reading() as source,
            copy.writing() as target,
        ):
            copy_rows(source, target)

    def replace_by(self, file: Path) -> None:
        """Put what an SQLite file has in place of everything, or nothing after an error."""
        with (
            closing(Database.open(f"sqlite:///{file}")) as copy,
            copy.reading() as source,
            self._database.writing() as target,
        ):
            make_anew(target)
            copy_rows(source, target)

    def is_empty(self) -> bool:
        """Whether nobody has put anything in."""
        with self._database.reading() as connection:
            return is_empty(connection)

    def named_blobs(self) -> set[str]:
        """The digest of every blob that a revision names."""
        with self._database.reading() as connection:
            return select_named_blobs(connection)

    def change_counter(self) -> int:
        """Grows with every committed change to adapters or base models, whoever makes it."""
        return self._change_counter.value()

    def watch(self) -> Watch:
        """Wakes one thread that waits for changes, whoever makes them."""
        return self._database.watch()

    def create_tenant(self, name: str, tier: str) -> Tenant:
        """Raises InvalidNameError, UnknownTierError, TenantExistsError."""
        with self._database.writing() as connection:
            tenant = insert_tenant(connection, name=name, tier=tier, tiers=self.tiers)
            self._audit(connection, "tenant.created", tenant.id, tenant.id, tier=tenant.tier)
            return tenant

    def tenant(self, name: str) -> Tenant:
        """Raises TenantNotFoundError."""
        with self._database.reading() as connection:
            return select_tenant(connection, name)

    def tenant_with_id(self, tenant_id: str) -> Tenant:
        """Raises TenantNotFoundError."""
        with self._database.reading() as connection:
            return select_tenant_with_id(connection, tenant_id)

    def tenants(self) -> list[Tenant]:
        """Every tenant, sorted by name."""
        with self._database.reading() as connection:
            return select_tenants(connection)

    def set_tier(self, tenant_name: str, tier: str) -> Tenant:
        """The tenant with that tier. Raises TenantNotFoundError, UnknownTierError."""
        with self._database.writing() as connection:
            tenant = select_tenant(connection, tenant_name)
            if not update_tier(connection, tenant, self.tiers.named(tier)):
                return tenant
            self._audit(
                connection, "tenant.tier_changed", tenant.id, tenant.id, tier=tier, was=tenant.tier
            )
            return select_tenant(connection, tenant_name)

    def delete_tenant(self, name: str, *, with_adapters: bool = False) -> Tenant:
        """The tenant that is no more; its keys are revoked, its name is free.

        Raises TenantNotFoundError, and TenantHasAdaptersError unless they are to go with it.
        """
        # `changing`, so that no adapter comes in between.
        with self._database.changing() as connection:
            tenant = select_tenant(connection, name)
            adapters = select_adapters(connection, tenant.id)
            count = len(adapters) + count_new(connection, tenant.id)
            if count and not with_adapters:
                raise TenantHasAdaptersError(name=name, count=count)
            for adapter in adapters:
                self._delete_adapter(connection, adapter)
            for fetch in select_fetches(connection, tenant.id):
                self._delete_fetch(connection, fetch)
            for alias in select_aliases(connection, tenant.id):
                self._delete_alias(connection, tenant.id, alias.name)
            for key in select_keys(connection, tenant, limit=None, after=None).items:
                self._revoke(connection, key)
            self._audit(connection, "tenant.deleted", tenant.id, tenant.id, tier=tenant.tier)
            mark_deleted(connection, tenant)
            return tenant

    def create_key(self, tenant_name: str) -> str:
        """A new key, `pk-<id>-<secret>`; nobody can ask for it again.

        Raises TenantNotFoundError.
        """
        return self.issue_key(tenant_name).text

    def issue_key(
        self, tenant_name: str, *, name: str | None = None, expires_at: datetime | None = None
    ) -> IssuedKey:
        """A new key, with all that is known of it.

        Raises TenantNotFoundError, InvalidNameError.
        """
        with self._database.writing() as connection:
            tenant = select_tenant(connection, tenant_name)
            issued = insert_key(connection, tenant, name=name, expires_at=expires_at)
            expiry = None if expires_at is None else int(expires_at.timestamp())
            self._audit(
                connection, "key.created", tenant.id, issued.key.id, name=name, expires_at=expiry
            )
            return issued

    def caller(self, api_key: str) -> Caller:
        """Who has that key. Raises InvalidApiKeyError, also for one that is no longer valid."""
        with self._database.reading() as connection:
            return select_caller(connection, api_key)

    def keys(
        self, tenant_name: str, *, limit: int | None = None, after: str | None = None
    ) -> Page[ApiKey]:
        """A tenant's keys, the newest first, also those that are no longer valid.

        Raises TenantNotFoundError, UnknownCursorError.
        """
        with self._database.reading() as connection:
            tenant = select_tenant(connection, tenant_name)
            return select_keys(connection, tenant, limit=limit, after=after)

    def revoke_key(self, key_id: str) -> ApiKey:
        """The key, revoked from now on or since before. Raises KeyNotFoundError."""
        with self._database.writing() as connection:
            self._revoke(connection, select_key(connection, key_id))
            return select_key(connection, key_id)

    def note_key_uses(self, key_ids: Collection[str], at: datetime) -> None:
        """Keep that these keys were used, at most once a minute for each."""
        with self._database.writing() as connection:
            update_last_use(connection, key_ids, at)

    def audit(self, *, limit: int | None = None, before: int | None = None) -> Page[AuditEntry]:
        """Who changed what, the newest first; what came before an entry's id if one is given."""
        with self._database.reading() as connection:
            return select_entries(connection, limit=limit, before=before)

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

    def base_model_for_adapters(self, name: str, tenant: Tenant) -> BaseModel:
        """The base model, for the tenant to put an adapter on.

        Raises BaseModelNotFoundError, also when it is reserved to others, and
        AdaptersNotSupportedError.
        """
        with self._database.reading() as connection:
            return select_base_model_for_adapters(connection, name, tenant.id)

    def remove_base_model(self, name: str) -> None:
        """Remove it where it is there; its adapters stay."""
        with self._database.changing() as connection:
            if not delete_base_model(connection, name):
                connection.rollback()

    def reserve_base_model(self, name: str, tenant_names: Collection[str]) -> BaseModel:
        """The base model, from now on for these tenants alone, whoever it was for before.

        For the others it is as if there were none. Raises BaseModelNotFoundError,
        TenantNotFoundError, and OwnBaseModelError when a tenant's tier allows none.
        """
        with self._database.changing() as connection:
            before = select_base_model(connection, name).reserved_for or frozenset()
            tenants = [select_tenant(connection, each) for each in sorted(set(tenant_names))]
            for tenant in tenants:
                if not self.tiers.of(tenant).own_base_models:
                    raise OwnBaseModelError(tenant=tenant.name, tier=tenant.tier)
            replace_reservation(connection, name, [tenant.id for tenant in tenants])
            now = frozenset(tenant.id for tenant in tenants)
            self._audit_reservation(connection, name, before, now)
            return select_base_model(connection, name)

    def release_base_model(self, name: str) -> BaseModel:
        """The base model, for all tenants from now on. Raises BaseModelNotFoundError."""
        with self._database.changing() as connection:
            before = select_base_model(connection, name).reserved_for or frozenset()
            replace_reservation(connection, name, [])
            self._audit_reservation(connection, name, before, frozenset())
            return select_base_model(connection, name)

    def create_adapter(
        self,
        *,
        tenant: Tenant,
        name: str,
        base_model: str,
        revision: Revision,
        overwrite: Overwrite = CREATE_ONLY,
        fetched_id: str | None = None,
    ) -> Adapter:
        """A new adapter, loading; or a new revision of the one of that name, if told to replace it.

        A revision's number is given here. It is loading, or ready if its content serves already.
        Adapters being deleted neither count nor hold their name. `fetched_id` is the adapter_id of
        the fetch that this ends.

        Raises InvalidNameError, TenantNotFoundError, BaseModelNotFoundError,
        AdaptersNotSupportedError, AdapterExistsError, AdapterLimitError, PreconditionFailedError,
        FetchGoneError, TierMissingError.
        """
        with self._database.changing() as connection:
            adapter = put_adapter(
                connection,
                tenant=tenant,
                name=name,
                base_model=base_model,
                revision=revision,
                overwrite=overwrite,
                fetched_id=fetched_id,
                tiers=self.tiers,
            )
            action = "adapter.created" if adapter.revision.is_first else "adapter.replaced"
            self._audit_adapter(connection, action, adapter)
            return adapter

    def check_new_adapter(self, tenant: Tenant, name: str, base_model: str) -> None:
        """What can be told before the hub is asked.

        Raises InvalidNameError, BaseModelNotFoundError, AdaptersNotSupportedError.
        """
        check_adapter_name(name)
        with self._database.reading() as connection:
            require_base_model_for_adapters(connection, base_model, tenant.id)

    def create_fetch(
        self,
        *,
        tenant: Tenant,
        name: str,
        base_model: str,
        pinned: PinnedRepo,
        overwrite: Overwrite = CREATE_ONLY,
        sealed_token: str | None = None,
    ) -> Fetch:
        """A pending fetch of an adapter from a repo. The token is kept until it has ended.

        Raises InvalidNameError, TenantNotFoundError, BaseModelNotFoundError,
        AdaptersNotSupportedError, AdapterExistsError, AdapterLimitError, PreconditionFailedError,
        FetchInProgressError, TierMissingError.
        """
        check_adapter_name(name)
        with self._database.changing() as connection:
            require_live(connection, tenant)
            require_base_model_for_adapters(connection, base_model, tenant.id)
            known = find_adapter(connection, tenant_id=tenant.id, base_model=base_model, name=name)
            if known is None:
                require_room(connection, tenant, self.tiers.of(tenant))
            fetch = insert_fetch(
                connection,
                tenant=tenant,
                name=name,
                base_model=base_model,
                pinned=pinned,
                overwrite=overwrite,
                sealed_token=sealed_token,
                known=known,
            )
            self._audit_fetch(connection, "fetch.created", fetch)
            return fetch

    def fetch(self, tenant_id: str, adapter_id: str) -> Fetch | None:
        """The tenant's fetch for that adapter, if there is one."""
        with self._database.reading() as connection:
            return select_fetch(connection, tenant_id=tenant_id, adapter_id=adapter_id)

    def adapter_or_fetch(
        self, tenant_id: str, adapter_id: str
    ) -> tuple[Adapter | None, Fetch | None]:
        """The adapter and the fetch of it or of its next revision, at least one of them.

        Raises AdapterNotFoundError.
        """
        with self._database.reading() as connection:
            fetch = select_fetch(connection, tenant_id=tenant_id, adapter_id=adapter_id)
            try:
                adapter = select_adapter(connection, tenant_id=tenant_id, adapter_id=adapter_id)
            except AdapterNotFoundError:
                if fetch is None:
                    raise
                return None, fetch
            return adapter, fetch

    def fetches(self, tenant_id: str) -> list[Fetch]:
        """The tenant's fetches, newest first."""
        with self._database.reading() as connection:
            return select_fetches(connection, tenant_id)

    def has_pending_fetch(self) -> bool:
        """Whether a fetch waits to be done; takes no lock."""
        return self._has_pending_fetch.value()

    def claim_fetch(self) -> ClaimedFetch | None:
        """The oldest pending fetch, which the caller does now; None when there is none."""
        with self._database.writing() as connection:
            return claim_fetch(connection)

    def reopen_fetches(self) -> None:
        """Make pending what was being fetched: for whoever starts, and is the only one."""
        with self._database.changing() as connection:
            if not reopen_fetches(connection):
                connection.rollback()

    def set_fetch_progress(self, adapter_id: str, stage: FetchStage, bytes_done: int) -> None:
        """Raises FetchGoneError when somebody has deleted the fetch."""
        with self._database.writing() as connection:
            set_progress(connection, adapter_id, stage, bytes_done)

    def fail_fetch(self, adapter_id: str, *, code: str | None, message: str) -> None:
        """Say why it failed, and forget its token."""
        with self._database.changing() as connection:
            fail_fetch(connection, adapter_id, code=code, message=message)

    def roll_back_adapter(
        self,
        tenant_id: str,
        adapter_id: str,
        number: int | None = None,
        *,
        if_match: frozenset[str] | None = None,
    ) -> Adapter:
        """The adapter with an earlier revision's content as a new one; the last but one's if None.

        Raises AdapterNotFoundError, PreconditionFailedError, RevisionNotFoundError,
        NoEarlierRevisionError.
        """
        with self._database.changing() as connection:
            adapter = select_adapter(connection, tenant_id=tenant_id, adapter_id=adapter_id)
            require_match(if_match, adapter)
            content = earlier_revision(connection, adapter, number)
            changed = insert_revision(connection, adapter, content)
            self._audit_adapter(connection, "adapter.rolled_back", changed)
            return changed

    def revisions(self, tenant_id: str, adapter_id: str) -> list[KeptRevision]:
        """The revisions that can be gone back to, newest first. Raises AdapterNotFoundError."""
        with self._database.reading() as connection:
            adapter = select_adapter(connection, tenant_id=tenant_id, adapter_id=adapter_id)
            return select_revisions(connection, adapter)

    def prune_revisions(self, adapter_id: str) -> list[str]:
        """Forget all but the three newest revisions and the serving one.

        The blobs (SHA-256) that no revision uses any more, sorted.
        """
        with self._database.changing() as connection:
            unused = prune_revisions(connection, adapter_id)
            if unused is None:
                connection.rollback()
            return list(unused or ())

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

    def find_adapter_or_fetch(self, tenant_id: str, base_model: str, name: str) -> Adapter | Fetch:
        """What has the name: an adapter, else the fetch that becomes it.

        One look at both, or it would miss a fetch that becomes its adapter between two.
        Raises AdapterNotFoundError, also for one being deleted.
        """
        named = {"tenant_id": tenant_id, "base_model": base_model, "name": name}
        with self._database.reading() as connection:
            try:
                return select_adapter_named(connection, **named)
            except AdapterNotFoundError:
                if (fetch := select_fetch_named(connection, **named)) is None:
                    raise
                return fetch

    def adapters(self, tenant_id: str | None = None) -> list[Adapter]:
        """A tenant's adapters, or every tenant's; newest first, without those being deleted."""
        with self._database.reading() as connection:
            return select_adapters(connection, tenant_id)

    def adapter_page(self, tenant_id: str, query: AdapterQuery) -> Page[Adapter | Fetch]:
        """A part of a tenant's adapters, without those being deleted.

        Raises AdapterNotFoundError when `query.after` is none of them.
        """
        with self._database.reading() as connection:
            return select_adapter_page(connection, tenant_id, query)

    def desired_adapters(self, base_model: str, since: int = BEFORE_ALL) -> DesiredChanges:
        """A base model's adapters of every tenant and in every status.

        With `since`, an earlier answer's `change`, those alone that changed after it.
        """
        with self._database.reading() as connection:
            return select_desired(connection, base_model, since)

    def delete_adapter(
        self, tenant_id: str, adapter_id: str, *, if_match: frozenset[str] | None = None
    ) -> Adapter | Fetch:
        """The adapter, deleting from now on; or the fetch that is no more, if it was not here yet.

        Raises AdapterNotFoundError, PreconditionFailedError.
        """
        with self._database.changing() as connection:
            try:
                adapter = select_adapter(connection, tenant_id=tenant_id, adapter_id=adapter_id)
            except AdapterNotFoundError:
                fetch = select_fetch(connection, tenant_id=tenant_id, adapter_id=adapter_id)
                if fetch is None:
                    raise
                # What is not here yet has no state that could match.
                require_match(if_match, None)
                return self._delete_fetch(connection, fetch)
            require_match(if_match, adapter)
            return self._delete_adapter(connection, adapter)

    def every_adapter_page(
        self, where: AdapterFilter, *, limit: int, after: str | None = None
    ) -> Page[Adapter]:
        """Every tenant's adapters, the newest first, those being deleted only when asked for.

        Raises UnknownCursorError.
        """
        with self._database.reading() as connection:
            return select_every_adapter_page(connection, where, limit=limit, after=after)

    def delete_any_adapter(self, adapter_id: str) -> Adapter:
        """The adapter, whoever's it is, deleting from now on. Raises AdapterNotFoundError."""
        with self._database.changing() as connection:
            return self._delete_adapter(connection, select_any_adapter(connection, adapter_id))

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

        The status is the newest revision's, if that has the content `digest`: ready makes it the
        serving one. A serving content that failed serves no more. Nothing happens to an adapter
        for which `digest` is neither, or that is being deleted.
        """
        state = AdapterState(status=status, error_code=error_code, error_message=error_message)
        with self._database.changing() as connection:
            changed = update_state(connection, adapter_id, digest, state)
            if not changed:
                connection.rollback()
            return changed

    def check_place(self) -> None:
        """Raise RegistryReplacedError when it is no longer the database that was opened."""
        self._database.check_place()

    def contents_with_blob(self, digest: str) -> list[tuple[str, str]]:
        """The adapter's id and the content's digest of each revision that has the blob; sorted."""
        with self._database.reading() as connection:
            return contents_with_blob(connection, digest)

    def announce_node(self, node: Node) -> None:
        """Add the node, or put it in place of what it announced before."""
        with self._database.writing() as connection:
            upsert_node(connection, node)

    def nodes(self) -> list[Node]:
        """Every node, sorted by host, also those that are lost since not too long."""
        with self._database.reading() as connection:
            return select_nodes(connection)

    def note_residencies(
        self, node_id: str, base_model: str, held: Mapping[str, Residency]
    ) -> None:
        """Where an announced node has a base model's adapters, by id; the others on its disk.

        Writes what differs. Not for two callers at once with the same node and base model.
        """
        with self._database.reading() as connection:
            known = select_residencies(connection, node_id=node_id, base_model=base_model)
        changes = {
            adapter_id: residency
            for adapter_id in known.keys() | held.keys()
            if (residency := held.get(adapter_id, Residency.DISK))
            is not known.get(adapter_id, Residency.DISK)
        }
        if changes:
            with self._database.writing() as connection:
                change_residencies(connection, node_id, changes)

    def forget_adapter(self, adapter_id: str) -> list[str]:
        """Remove a deleting adapter; the blobs (SHA-256) that no revision uses any more, sorted.

        Nothing happens to an adapter that isn't there or isn't being deleted.
        """
        with self._database.changing() as connection:
            unused = delete_deleting(connection, adapter_id)
            if unused is None:
                connection.rollback()
            return list(unused or ())

    def put_alias(
        self, tenant_id: str, name: str, targets: Sequence[AliasTarget]
    ) -> tuple[Alias, bool]:
        """The alias, made or replaced at once, and whether it is new.

        Whether the targets exist is the caller's to check: they may go at any time anyway.
        Raises TenantNotFoundError, InvalidNameError, AliasNameTakenError, AliasLimitError.
        """
        with self._database.writing() as connection:
            select_tenant_with_id(connection, tenant_id)
            alias, is_new = upsert_alias(
                connection, tenant_id=tenant_id, name=name, targets=targets
            )
            weights = {target.requested_model: target.weight for target in alias.targets}
            self._audit(connection, "alias.put", tenant_id, name, targets=weights)
            return alias, is_new

    def alias(self, tenant_id: str, name: str) -> Alias:
        """Raises AliasNotFoundError, also for another tenant's."""
        with self._database.reading() as connection:
            return select_alias(connection, tenant_id=tenant_id, name=name)

    def aliases(self, tenant_id: str) -> list[Alias]:
        """A tenant's aliases, sorted by name."""
        with self._database.reading() as connection:
            return select_aliases(connection, tenant_id)

    def delete_alias(self, tenant_id: str, name: str) -> None:
        """Raises AliasNotFoundError, also the second time."""
        with self._database.writing() as connection:
            self._delete_alias(connection, tenant_id, name)

    def unused_blobs(self, digests: Sequence[str]) -> list[str]:
        """Those blobs (SHA-256) that no adapter's revision has as its config or its weights."""
        with self._database.reading() as connection:
            return unused_blobs(connection, digests)

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

    def _delete_alias(self, connection: Connection, tenant_id: str, name: str) -> None:
        delete_alias(connection, tenant_id=tenant_id, name=name)
        self._audit(connection, "alias.deleted", tenant_id, name)

    def _delete_adapter(self, connection: Connection, adapter: Adapter) -> Adapter:
        fetch = select_fetch(connection, tenant_id=adapter.tenant_id, adapter_id=adapter.id)
        if fetch is not None:
            # Of its next revision: it has nothing to become any more.
            self._delete_fetch(connection, fetch)
        self._audit_adapter(connection, "adapter.deleted", adapter)
        return mark_deleting(connection, adapter)

    def _delete_fetch(self, connection: Connection, fetch: Fetch) -> Fetch:
        delete_fetch(connection, fetch.id)
        self._audit_fetch(connection, "fetch.deleted", fetch)
        return fetch

    def _revoke(self, connection: Connection, key: ApiKey) -> None:
        if revoke(connection, key):
            self._audit(connection, "key.revoked", key.tenant_id, key.id, name=key.name)

    def _audit_reservation(
        self, connection: Connection, name: str, before: frozenset[str], now: frozenset[str]
    ) -> None:
        """An entry for each tenant that it is now, or is no more, reserved to."""
        for tenant_id in sorted(before ^ now):
            verb = "reserved" if tenant_id in now else "released"
            self._audit(connection, f"base_model.{verb}", tenant_id, tenant_id, base_model=name)

    def _audit_fetch(self, connection: Connection, action: str, fetch: Fetch) -> None:
        self._audit(
            connection,
            action,
            fetch.tenant_id,
            fetch.id,
            model=fetch.requested_model,
            source=fetch.pinned.document(),
        )

    def _audit_adapter(self, connection: Connection, action: str, adapter: Adapter) -> None:
        self._audit(
            connection,
            action,
            adapter.tenant_id,
            adapter.id,
            model=adapter.requested_model,
            revision=adapter.revision.number,
            digest=adapter.revision.digest,
        )

    def _audit(
        self, connection: Connection, action: str, tenant_id: str, object_id: str, **details: object
    ) -> None:
        """In the transaction of the change: neither is there without the other."""
        insert_entry(
            connection,
            actor=self._actor,
            action=action,
            tenant_id=tenant_id,
            object_id=object_id,
            details=details,
        )
