"""What the registry keeps, as values: tenants, base models, adapters, aliases, usage.

Imports nothing of the project but its errors, so that every room may use it.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from types import MappingProxyType
from typing import Generic, TypeVar

from adapter_sync.errors import InvalidNameError

ADAPTER_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
TENANT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
NAME_RULE = "use 1 to 64 letters, digits, '.', '_' and '-', with a letter or digit at both ends."
TENANT_RULE = "use 1 to 64 lower-case letters, digits and '-', with no '-' at either end."
UPLOADED: Mapping[str, object] = MappingProxyType({"type": "upload"})
"""The source of a revision whose files were uploaded."""
MAX_KEY_NAME = 64
KEY_NAME_RULE = f"use 1 to {MAX_KEY_NAME} printable characters, with no blank at either end."
LOST_AFTER = timedelta(seconds=30)
"""How long a node may be silent; it announces itself every few seconds."""
LAST_USE_RESOLUTION = timedelta(minutes=1)
"""How exact a key's `last_used_at` is: one write a minute, however busy the key."""
SYSTEM = "system"
"""Who acts where nobody asked; the other actors are `key:<key_id>`, `admin` and `loractl`."""

Item = TypeVar("Item")


class AdapterStatus(StrEnum):
    """Where an adapter's newest revision stands on its way into the engine."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """The owner of keys and adapters."""

    id: str
    name: str
    tier: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A tenant's key, without its secret."""

    id: str
    tenant_id: str
    name: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens anything at that moment."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def has_stale_last_use(self, now: datetime) -> bool:
        """Whether a use at that moment is to be written down."""
        return self.last_used_at is None or now - self.last_used_at >= LAST_USE_RESOLUTION


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey:
    """A key just made: `text` is what its owner sends, and nobody can ask for it again."""

    key: ApiKey
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks: a tenant, with one of its keys."""

    tenant: Tenant
    key: ApiKey

    @property
    def actor(self) -> str:
        """Its name in the audit."""
        return f"key:{self.key.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """Who changed what, and when. `tenant` is its name at that time; ids grow."""

    id: int
    at: datetime
    actor: str
    action: str
    tenant: str
    object_id: str
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[Item]):
    """A part of a list, and whether more follows."""

    items: tuple[Item, ...]
    has_more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A base model as its files describe it.

    `tensor_shapes` maps each weight's Hugging Face name ("model.layers.0.mlp.up_proj.weight") to
    its shape, (out_features, in_features) for a linear layer. It is empty, and `max_lora_rank`
    means nothing, for one that takes no adapters: it is served without LoRA. `reserved_for` has the
    ids of the tenants that it is there for, None for all.
    """

    name: str
    max_lora_rank: int
    max_model_len: int
    tensor_shapes: Mapping[str, tuple[int, ...]]
    takes_adapters: bool = True
    reserved_for: frozenset[str] | None = None

    def is_for(self, tenant_id: str) -> bool:
        """Whether it is there for that tenant."""
        return self.reserved_for is None or tenant_id in self.reserved_for


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One immutable content of an adapter.

    `config_blob` and `weights_blob` are the SHA-256 (hex) of adapter_config.json and of
    adapter_model.safetensors; `digest` is the SHA-256 over both, the content's identity. `source`
    says, in JSON's types, where it came from.
    """

    number: int
    digest: str
    config_blob: str
    weights_blob: str
    size_bytes: int
    rank: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    warnings: tuple[str, ...]
    source: Mapping[str, object] = field(default_factory=lambda: UPLOADED)

    @property
    def is_first(self) -> bool:
        """Whether the adapter came with it."""
        return self.number == 1


class Residency(StrEnum):
    """Where an adapter's weights are: a slot of the device, the host's memory, or only files."""

    GPU = "gpu"
    CPU = "cpu"
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A tenant's adapter on a base model.

    `revision` is the newest one, and the status and the error are its own. `serving` is the one
    that answers requests: the last that became ready, whatever has become of a newer one.
    `residency` is the best that any node has of that one, None without one.
    """

    id: str
    tenant_id: str
    name: str
    base_model: str
    status: AdapterStatus
    error_code: str | None
    error_message: str | None
    revision: Revision
    created_at: datetime
    updated_at: datetime
    serving: Revision | None = None
    last_used_at: datetime | None = None
    residency: Residency | None = None

    @property
    def lora_name(self) -> str:
        """The newest revision's identity inside the engine: id and content."""
        return self.lora_name_of(self.revision)

    @property
    def etag(self) -> str:
        """A strong ETag, quotes included, that changes with every new revision."""
        return self.etag_of(self.revision)

    @property
    def requested_model(self) -> str:
        """The string a client puts into `model`."""
        return f"{self.base_model}:{self.name}"

    def lora_name_of(self, revision: Revision) -> str:
        """A revision's identity inside the engine; revisions of one content are one to it."""
        return lora_name_of(self.id, revision.digest)

    def etag_of(self, revision: Revision) -> str:
        """The ETag that the adapter has, or had, with this revision as its newest."""
        state = f"{self.id}/{revision.number}/{revision.digest}"
        return f'"{sha256(state.encode()).hexdigest()[:32]}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRevision:
    """A revision that can be gone back to, and whether it is the one that answers requests."""

    revision: Revision
    etag: str
    created_at: datetime
    serving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Overwrite:
    """What an upload may do to an adapter of its name that is there already.

    `replace` makes a new revision of it. `if_match` holds the ETags that it has to have one of,
    or "*" for any; None asks for nothing.
    """

    replace: bool = False
    if_match: frozenset[str] | None = None


CREATE_ONLY = Overwrite()


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the engine needs of a revision."""

    digest: str
    config_blob: str
    weights_blob: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredAdapter:
    """What reconciling needs of an adapter: there may be ten thousand to look at in each pass."""

    id: str
    name: str
    status: AdapterStatus
    newest: Content
    serving: Content | None


BEFORE_ALL = -1
"""Before the first change of a registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredChanges:
    """Adapters of a base model that changed, sorted by id.

    `change` is the registry's change counter at that time, and `count` how many adapters the base
    model has in all: those that are gone are told by it alone.
    """

    change: int
    count: int
    adapters: tuple[DesiredAdapter, ...]


def lora_name_of(adapter_id: str, digest: str) -> str:
    """A content's identity inside the engine."""
    return f"{adapter_id}@{digest[:16]}"


def adapter_id_of(lora_name: str) -> str:
    """The id of the adapter that an identity inside the engine belongs to."""
    return lora_name.partition("@")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeBaseModel:
    """A base model on a node.

    `max_lora_rank` is None for one that takes no adapters. `max_loras`, its engine's slots, and
    `lora_map_revision`, which the engine has applied, are None while it doesn't run.
    """

    name: str
    max_model_len: int
    max_lora_rank: int | None
    max_loras: int | None
    lora_map_revision: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One Triton with its adapter_sync; `triton` is Triton's HTTP address as that one knows it."""

    id: str
    host: str
    triton: str
    version: str
    base_models: tuple[NodeBaseModel, ...]
    started_at: datetime
    heartbeat_at: datetime

    def is_lost(self, now: datetime) -> bool:
        """Whether it has been silent for too long."""
        return now - self.heartbeat_at > LOST_AFTER

    def document(self, now: datetime) -> dict[str, object]:
        """The node object, in JSON's types; times are Unix seconds."""
        return {
            "id": self.id,
            "object": "node",
            "status": "lost" if self.is_lost(now) else "up",
            "host": self.host,
            "triton": self.triton,
            "version": self.version,
            "base_models": [asdict(base) for base in self.base_models],
            "started_at": int(self.started_at.timestamp()),
            "heartbeat_at": int(self.heartbeat_at.timestamp()),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasTarget:
    """A base model, or an adapter by its base model and name: a re-created one is meant too."""

    base_model: str
    adapter_name: str | None
    weight: int = 1

    @property
    def requested_model(self) -> str:
        """The string a client would put into `model` for it."""
        if self.adapter_name is None:
            return self.base_model
        return f"{self.base_model}:{self.adapter_name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A tenant's own name for a model, or for several that share its requests by weight."""

    tenant_id: str
    name: str
    targets: tuple[AliasTarget, ...]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageKey:
    """What usage is counted by; the day is UTC's, a base model has no adapter."""

    day: date
    tenant_id: str
    key_id: str | None
    requested_model: str
    adapter_id: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much was used."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBatch:
    """Usage to be added once: a writer's batches are numbered from 1 and come in this order."""

    writer: str
    number: int
    used: Mapping[UsageKey, Usage]
    adapters_used_at: Mapping[str, datetime]


class UsageField(StrEnum):
    """What usage may be grouped by."""

    DAY = "day"
    MODEL = "model"
    ADAPTER = "adapter"
    KEY = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBucket:
    """What was used by all that have these values in the fields that were grouped by."""

    group: Mapping[UsageField, str | date | None]
    usage: Usage


def check_adapter_name(name: str) -> str:
    """The name itself. Raises InvalidNameError."""
    if ADAPTER_NAME.fullmatch(name) is None:
        raise InvalidNameError(name=name, param="name", rule=NAME_RULE)
    return name


def check_alias_name(name: str) -> str:
    """The name itself. Raises InvalidNameError."""
    if ADAPTER_NAME.fullmatch(name) is None:
        raise InvalidNameError(name=name, param="alias", rule=NAME_RULE)
    return name


def check_tenant_name(name: str) -> str:
    """The name itself. Raises InvalidNameError."""
    if TENANT_NAME.fullmatch(name) is None:
        raise InvalidNameError(name=name, param="name", rule=TENANT_RULE, kind="tenant")
    return name


def check_key_name(name: str) -> str:
    """The name itself. Raises InvalidNameError."""
    if not (0 < len(name) <= MAX_KEY_NAME and name.isprintable() and name == name.strip()):
        raise InvalidNameError(name=name, param="name", rule=KEY_NAME_RULE, kind="key name")
    return name
