"""What the registry keeps: tenants, base models, adapters, aliases, as plain values.

Imports nothing of the project but its errors, so that every room may use it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
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
    its shape, (out_features, in_features) for a linear layer. It is empty, and `max_lora_rank`
    means nothing, for one that takes no adapters: it is served without LoRA.
    """

    name: str
    max_lora_rank: int
    max_model_len: int
    tensor_shapes: Mapping[str, tuple[int, ...]]
    takes_adapters: bool = True


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

    @property
    def lora_name(self) -> str:
        """The adapter's identity inside the engine; a new revision is a new identity."""
        return f"{self.id}@{self.revision.digest[:16]}"

    @property
    def requested_model(self) -> str:
        """The string a client puts into `model`."""
        return f"{self.base_model}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterQuery:
    """Which of a tenant's adapters to list: at most `limit`, those that follow `after` (an id)."""

    limit: int
    after: str | None = None
    oldest_first: bool = False
    base_model: str | None = None
    status: AdapterStatus | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPage:
    """A part of a list, and whether more follow."""

    adapters: tuple[Adapter, ...]
    has_more: bool


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
        raise InvalidNameError(name=name, param="tenant", rule=TENANT_RULE)
    return name
