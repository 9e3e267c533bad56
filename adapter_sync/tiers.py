"""The tiers and their limits, as the service promises them to its customers."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from adapter_sync.errors import UnknownTierError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """Named limits."""

    name: str
    max_adapters: int
    max_adapter_bytes: int


TIERS: Mapping[str, Tier] = MappingProxyType(
    {
        name: Tier(name=name, max_adapters=max_adapters, max_adapter_bytes=500_000_000)
        for name, max_adapters in (("shared", 20), ("reserved", 200), ("dedicated", 200))
    }
)


def tier_named(name: str) -> Tier:
    """The tier. Raises UnknownTierError."""
    try:
        return TIERS[name]
    except KeyError:
        raise UnknownTierError(tier=name, known=list(TIERS)) from None
