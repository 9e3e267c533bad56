"""Which modules an adapter_config.json selects, by PEFT's rule (check_target_module_exists)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Modules by name: `endings` of names, or a whole name as a regular `expression`.

    An expression has no special characters but "." (see patterns.HARMLESS_KEY).
    """

    endings: frozenset[str] = frozenset()
    expression: str | None = None

    def match(self, module: str) -> bool:
        """Whether the module is one of them."""
        if self.expression is not None:
            return re.fullmatch(self.expression, module) is not None
        return not self.endings.isdisjoint(name_endings(module))


NO_NAMES = Names()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a config puts LoRA on; `targets` None stands for all linear layers.

    `layers` empty means all layers; `layers_patterns` name the list of layers ("layers", "h").
    """

    targets: Names | None
    excluded: Names = NO_NAMES
    layers: frozenset[int] = frozenset()
    layers_patterns: tuple[str, ...] = ()

    def selects(self, module: str) -> bool:
        """Whether PEFT would put LoRA on the module."""
        if self.excluded.match(module):
            return False
        if self.targets is None:
            return True
        if not self.targets.match(module):
            return False
        # PEFT takes a whole name in target_modules whatever layers_to_transform says.
        return (
            not self.layers
            or module in self.targets.endings
            or self.layer_of(module) in self.layers
        )

    def layer_of(self, module: str) -> int | None:
        """The layer PEFT finds in the name."""
        if not self.layers_patterns:
            match = re.match(r".*?\.[^.]*\.(\d+)\.", module)
            return None if match is None else int(match[1])
        for pattern in self.layers_patterns:
            match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
            if match is not None:
                return int(match[1])
        return None


def name_endings(module: str) -> Iterator[str]:
    """The whole name and each of its endings at a dot, the longest first."""
    parts = module.split(".")
    return (".".join(parts[index:]) for index in range(len(parts)))


def endings_of(modules: Iterable[str]) -> frozenset[str]:
    """Every ending of every name."""
    return frozenset(ending for module in modules for ending in name_endings(module))
