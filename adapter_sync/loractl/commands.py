"""What each command of loractl does, on the registry and the blobs of the installation."""

import json
import logging
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import MappingProxyType

import structlog
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from adapter_sync.backup import Backed, back_up, restore
from adapter_sync.blobs import FolderBlobStore
from adapter_sync.errors import LoraServerError
from adapter_sync.installation import adopt_blobs
from adapter_sync.intake import Intake
from adapter_sync.loractl.output import (
    adapter_document,
    adapters_table,
    key_document,
    keys_table,
    list_document,
    nodes_table,
    one_line,
    tenant_document,
    tenants_table,
)
from adapter_sync.loractl.upload import adapter_files, stage
from adapter_sync.record import Adapter, AdapterStatus, IssuedKey, Overwrite, Tenant
from adapter_sync.registry import Registry
from adapter_sync.settings import Settings, load_settings
from adapter_sync.sources.bundle import unbundled
from adapter_sync.sources.files import AdapterFiles
from adapter_sync.tiers import load_tiers

_POLL_S = 0.1
_ACTOR = "loractl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a command prints: `document` with --json, else `text`; a failure ends in status 1."""

    document: Mapping[str, object]
    text: str
    notes: tuple[str, ...] = ()
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What the commands work on."""

    settings: Settings
    registry: Registry


def run(arguments: Namespace) -> int:
    """Run the command that the arguments name; the exit status."""
    try:
        settings = load_settings()
        tiers = load_tiers(settings.lora_tiers_file)
        with _quiet_logs(), closing(Registry.open(settings.registry_url, tiers)) as registry:
            installation = Installation(settings=settings, registry=registry.acting_as(_ACTOR))
            outcome = _COMMANDS[arguments.command](installation, arguments)
    except (LoraServerError, OSError, SQLAlchemyError) as error:
        return _fail(_reason(error))
    sys.stdout.write((json.dumps(outcome.document) if arguments.json else outcome.text) + "\n")
    for note in outcome.notes:
        _tell(note)
    return 0 if outcome.failure is None else _fail(outcome.failure)


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Standard output belongs to the command: warnings go to stderr, what is less nowhere."""
    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)


def _create_tenant(installation: Installation, arguments: Namespace) -> Outcome:
    tenant = installation.registry.create_tenant(arguments.name, arguments.tier)
    issued = installation.registry.issue_key(tenant.name)
    return _new_key(issued, tenant.name, f"Made the tenant {tenant.name}. ")


def _create_key(installation: Installation, arguments: Namespace) -> Outcome:
    period = arguments.expires_in
    issued = installation.registry.issue_key(
        arguments.tenant,
        name=arguments.name,
        expires_at=None if period is None else datetime.now(UTC) + period,
    )
    return _new_key(issued, arguments.tenant, "")


def _new_key(issued: IssuedKey, tenant_name: str, said_before: str) -> Outcome:
    return Outcome(
        document={**key_document(issued.key, tenant_name), "api_key": issued.text},
        text=f"{said_before}Its API key is shown only now:\n{issued.text}",
    )


def _list_keys(installation: Installation, arguments: Namespace) -> Outcome:
    keys = installation.registry.keys(arguments.tenant).items
    return Outcome(
        document=list_document([key_document(key, arguments.tenant) for key in keys]),
        text=keys_table(keys, datetime.now(UTC)),
    )


def _revoke_key(installation: Installation, arguments: Namespace) -> Outcome:
    key = installation.registry.revoke_key(arguments.id)
    return Outcome(
        document={"id": key.id, "object": "api_key", "revoked": True},
        text=f"The key {key.id} is revoked.",
    )


def _set_tier(installation: Installation, arguments: Namespace) -> Outcome:
    tenant = installation.registry.set_tier(arguments.name, arguments.tier)
    return Outcome(
        document=tenant_document(tenant),
        text=f"The tenant {tenant.name} has the tier {tenant.tier}.",
    )


def _delete_tenant(installation: Installation, arguments: Namespace) -> Outcome:
    tenant = installation.registry.delete_tenant(
        arguments.name, with_adapters=arguments.with_adapters
    )
    return Outcome(
        document={"id": tenant.id, "object": "tenant", "deleted": True},
        text=f"Deleted the tenant {tenant.name} ({tenant.id}).",
    )


def _list_tenants(installation: Installation, arguments: Namespace) -> Outcome:
    del arguments
    tenants = installation.registry.tenants()
    return Outcome(
        document=list_document([tenant_document(tenant) for tenant in tenants]),
        text=tenants_table(tenants),
    )


def _reserve_base_model(installation: Installation, arguments: Namespace) -> Outcome:
    tenants = sorted(set(arguments.tenant))
    base = installation.registry.reserve_base_model(arguments.name, tenants)
    return Outcome(
        document={"id": base.name, "object": "base_model", "reserved_for": tenants},
        text=f"The base model {base.name} is reserved to {', '.join(tenants)}.",
    )


def _release_base_model(installation: Installation, arguments: Namespace) -> Outcome:
    base = installation.registry.release_base_model(arguments.name)
    return Outcome(
        document={"id": base.name, "object": "base_model", "reserved_for": None},
        text=f"The base model {base.name} is for all tenants.",
    )


def _list_nodes(installation: Installation, arguments: Namespace) -> Outcome:
    del arguments
    nodes, now = installation.registry.nodes(), datetime.now(UTC)
    return Outcome(
        document=list_document([node.document(now) for node in nodes]),
        text=nodes_table(nodes, now),
    )


def _list_adapters(installation: Installation, arguments: Namespace) -> Outcome:
    registry = installation.registry
    tenant_id = None if arguments.tenant is None else registry.tenant(arguments.tenant).id
    listed = registry.adapters(tenant_id)
    names = {tenant.id: tenant.name for tenant in registry.tenants()}
    # A tenant deleted just now took its adapters with it.
    adapters = [adapter for adapter in listed if adapter.tenant_id in names]
    return Outcome(
        document=list_document(
            [adapter_document(adapter, names[adapter.tenant_id]) for adapter in adapters]
        ),
        text=adapters_table(adapters, names),
    )


def _delete_adapter(installation: Installation, arguments: Namespace) -> Outcome:
    tenant = installation.registry.tenant(arguments.tenant)
    adapter = installation.registry.delete_adapter(tenant.id, arguments.id)
    return Outcome(
        document={"id": arguments.id, "object": "adapter", "deleted": True},
        text=f"Deleted {arguments.id} ({adapter.requested_model}).",
    )


def _adopt_blobs(installation: Installation, _arguments: Namespace) -> Outcome:
    settings = installation.settings
    adopted = adopt_blobs(installation.registry, settings.blobs_folder, settings.staging_folder)
    return Outcome(
        document={"id": adopted, "blobs": str(settings.blobs_folder)},
        text=f"The blobs in {settings.blobs_folder} belong to the registry now.",
    )


def _back_up(installation: Installation, arguments: Namespace) -> Outcome:
    made = back_up(
        installation.registry,
        installation.settings,
        arguments.folder,
        with_blobs=arguments.with_blobs,
    )
    return _backed(made, f"Backed up to {arguments.folder}")


def _restore(installation: Installation, arguments: Namespace) -> Outcome:
    made = restore(
        installation.registry, installation.settings, arguments.folder, force=arguments.force
    )
    return _backed(made, f"Restored from {arguments.folder}")


def _backed(made: Backed, done: str) -> Outcome:
    return Outcome(
        document=asdict(made),
        text=f"{done}: the registry names {made.blobs} blobs, {made.size_bytes} bytes.",
        notes=tuple(f"warning: the blob {digest} is missing" for digest in made.missing),
    )


def _upload_adapter(installation: Installation, arguments: Namespace) -> Outcome:
    tenant = installation.registry.tenant(arguments.tenant)
    adapter = _accept(installation, tenant, arguments)
    if arguments.wait > 0:
        adapter = _wait(installation.registry, adapter, arguments.wait)
    return Outcome(
        document={
            **adapter_document(adapter, tenant.name),
            "warnings": list(adapter.revision.warnings),
        },
        text=adapters_table([adapter], {tenant.id: tenant.name}),
        notes=tuple(f"warning: {warning}" for warning in adapter.revision.warnings),
        failure=_failure(adapter, arguments.wait),
    )


def _accept(installation: Installation, tenant: Tenant, arguments: Namespace) -> Adapter:
    settings = installation.settings
    weights, config = adapter_files(arguments.file, arguments.config)
    blobs = FolderBlobStore(settings.blobs_folder)
    intake = Intake(installation.registry, blobs, settings.staging_folder)
    tier = installation.registry.tiers.of(tenant)
    with intake.staging_file() as staged:
        received = AdapterFiles(
            weights=staged,
            weights_sha256=stage(weights, staged, tier),
            config=None if config is None else config.read_bytes(),
            lora_alpha=arguments.lora_alpha,
        )
        with unbundled(received, tier=tier, staging_file=intake.staging_file) as files:
            return intake.accept(
                tenant=tenant,
                name=arguments.name,
                base_model=arguments.base_model,
                files=files,
                overwrite=Overwrite(replace=arguments.replace),
            )


def _wait(registry: Registry, adapter: Adapter, wait_s: float) -> Adapter:
    deadline = time.monotonic() + wait_s
    while adapter.status is AdapterStatus.LOADING and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        adapter = registry.adapter(adapter.tenant_id, adapter.id)
    return adapter


def _failure(adapter: Adapter, wait_s: float) -> str | None:
    if adapter.status is AdapterStatus.FAILED:
        return f"{adapter.requested_model} failed: {adapter.error_message}"
    if adapter.status is AdapterStatus.LOADING and wait_s > 0:
        return (
            f"{adapter.requested_model} is added, but not ready after {wait_s:g} s: it loads as "
            "soon as the server runs and has come to it."
        )
    return None


def _fail(reason: str) -> int:
    _tell(reason)
    return 1


def _tell(message: str) -> None:
    sys.stderr.write(f"loractl: {one_line(message)}\n")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, DBAPIError):
        return f"The registry can't be asked: {error.orig}"
    return str(error)


_COMMANDS: Mapping[str, Callable[[Installation, Namespace], Outcome]] = MappingProxyType(
    {
        "tenant create": _create_tenant,
        "tenant list": _list_tenants,
        "node list": _list_nodes,
        "base-model reserve": _reserve_base_model,
        "base-model release": _release_base_model,
        "tenant set-tier": _set_tier,
        "tenant delete": _delete_tenant,
        "key create": _create_key,
        "key list": _list_keys,
        "key revoke": _revoke_key,
        "adapters list": _list_adapters,
        "adapters upload": _upload_adapter,
        "adapters delete": _delete_adapter,
        "adopt-blobs": _adopt_blobs,
        "backup": _back_up,
        "restore": _restore,
    }
)
