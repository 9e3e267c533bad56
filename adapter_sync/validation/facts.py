"""What is known about an adapter once it has been checked."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """A valid adapter.

    `rank` is the largest of its modules' ranks. `target_modules` holds the last parts of the
    modules' names, sorted. `config` is the adapter_config.json to serve: only vetted values.
    """

    rank: int
    lora_alpha: float
    target_modules: tuple[str, ...]
    config: Mapping[str, object]
    warnings: tuple[str, ...]
