"""What the registry keeps: tenants, base models, adapters, their revisions and usage, as values.

Imports nothing of the project but its errors, so that every room may use it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum

from adapter_sync.errors import InvalidNameError

ADAPTER_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?", re.IGNORECASE | re.ASCII)
TENANT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
NAME_RULE = "use 1 to 64 letters, digits, '.', '_' and '-', with a letter or digit at both ends."
TENANT_RULE = "use 1 to 64 lower-case letters, digits and '-', with no '-' at either end."


class AdapterStatus(StrEnum):
    """Where an adapter stands on its way into the engine."""

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
class BaseModel:
    """A base model as its files describe it.

    `tensor_shapes` maps each weight's Hugging Face name ("model.layers.0.mlp.up_proj.weight") to
    its shape, (out_features, in_features) for a linear layer.
    """

    name: str
    max_lora_rank: int
    max_model_len: int
    tensor_shapes: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One immutable content of an adapter.

    `config_blob` and `weights_blob` are the SHA-256 (hex) of adapter_config.json and of
    adapter_model.safetensors; `digest` is the SHA-256 over both, the content's identity.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A tenant's adapter on a base model, with the revision that it serves."""

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
    last_used_at: datetime | None = None

    @property
    def lora_name(self) -> str:
        """The adapter's identity inside the engine; a new revision is a new identity."""
        return f"{self.id}@{self.revision.digest[:16]}"

    @property
    def requested_model(self) -> str:
        """The string a client puts into `model`."""
        return f"{self.base_model}:{self.name}"


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


def adapter_id_of(lora_name: str) -> str:
    """The adapter behind an identity inside the engine."""
    return lora_name.partition("@")[0]


def check_adapter_name(name: str) -> str:
    """The name itself. Raises InvalidNameError."""
    if ADAPTER_NAME.fullmatch(name) is None:
        raise InvalidNameError(name=name, param="name", rule=NAME_RULE)
    return name


def check_tenant_name(name: str) -> str:
    """The name itself. Raises InvalidNameError."""
    if TENANT_NAME.fullmatch(name) is None:
        raise InvalidNameError(name=name, param="tenant", rule=TENANT_RULE)
    return name
