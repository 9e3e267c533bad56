"""The tiers and their limits, as the service promises them to its customers.

They come from one TOML file: the one beside this module, or the operator's in place of it.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    RootModel,
    StringConstraints,
    ValidationError,
)

from adapter_sync.errors import ConfigurationError, TierMissingError, UnknownTierError
from adapter_sync.record import Tenant

_BUILT_IN = Path(__file__).with_name("tiers.toml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Named limits."""

    name: str
    max_adapters: int
    max_adapter_bytes: int
    requests_per_minute: int
    tokens_per_minute: int
    max_streams: int
    weight: int = 1
    own_base_models: bool = False


class Tiers:
    """Every tier of the installation."""

    def __init__(self, by_name: Mapping[str, Tier]) -> None:
        self._by_name = by_name

    @property
    def names(self) -> list[str]:
        """Their names, sorted."""
        return sorted(self._by_name)

    def named(self, name: str) -> Tier:
        """The tier. Raises UnknownTierError."""
        try:
            return self._by_name[name]
        except KeyError:
            raise UnknownTierError(tier=name, known=self.names) from None

    def of(self, tenant: Tenant) -> Tier:
        """The tenant's tier. Raises TierMissingError when the file has it no more."""
        try:
            return self._by_name[tenant.tier]
        except KeyError:
            raise TierMissingError(tier=tenant.tier) from None


class _Limits(BaseModel):
    """A tier in the file."""

    # Strict: `max_streams = true` or "8" is a slip, not a number.
    model_config = ConfigDict(extra="forbid", strict=True)

    max_adapters: NonNegativeInt
    max_adapter_bytes: PositiveInt
    requests_per_minute: PositiveInt
    tokens_per_minute: PositiveInt
    max_streams: PositiveInt
    weight: PositiveInt = 1
    own_base_models: bool = False


_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$")]


class _TiersFile(RootModel[Annotated[dict[_Name, _Limits], Field(min_length=1)]]):
    """The file."""


def load_tiers(path: Path | None = None) -> Tiers:
    """The tiers of a file, the built-in ones without it.

    Raises ConfigurationError, which names the key at fault.
    """
    path = path or _BUILT_IN
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"The tiers file {path} can't be read: {error.strerror}."
        ) from error
    except ValueError as error:
        raise ConfigurationError(f"The tiers file {path} is no TOML: {error}.") from error
    try:
        limits = _TiersFile.model_validate(document).root
    except ValidationError as error:
        raise ConfigurationError(f"The tiers file {path} is wrong: {_faults(error)}.") from None
    return Tiers({name: Tier(name=name, **each.model_dump()) for name, each in limits.items()})


def _faults(error: ValidationError) -> str:
    return "; ".join(
        ": ".join(part for part in (".".join(map(str, each["loc"])), each["msg"]) if part)
        for each in error.errors()
    )
