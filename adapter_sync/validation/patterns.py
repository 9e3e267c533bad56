"""rank_pattern and alpha_pattern: which value a module gets, by the rule of PEFT and vLLM."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Generic, TypeVar

from adapter_sync.validation.modules import last_part

MAX_KEYS = 1000
LONGEST_KEY = 256
HARMLESS_KEY = re.compile(rf"[A-Za-z0-9_.]{{1,{LONGEST_KEY}}}")
KEY_RULE = (
    f"only 1 to {LONGEST_KEY} letters, digits, '_' and '.' are allowed, because it is read as a "
    "regular expression"
)

Number = TypeVar("Number", bound=float)


class Pattern(Generic[Number]):
    """Looks a module's value up: the first key that ends the module's name wins."""

    def __init__(self, values: Mapping[str, Number], *, default: Number) -> None:
        self._default = default
        # The part after a key's last "." is literal, and comparing it spares most of the matches.
        self._keys = [
            (last_part(key), re.compile(rf"(.*\.)?({key})$"), value)
            for key, value in values.items()
        ]

    def of(self, module: str) -> Number:
        """The module's value, the default where no key matches."""
        for ending, key, value in self._keys:
            if module.endswith(ending) and key.match(module):
                return value
        return self._default


def shortest_pattern(values: Mapping[str, Number], *, default: Number) -> dict[str, Number]:
    """A pattern that gives each module its value, with a key for many modules where it can.

    `values` maps modules' names to values.
    """
    by_leaf: dict[str, dict[str, Number]] = defaultdict(dict)
    for module, value in sorted(values.items()):
        by_leaf[last_part(module)][module] = value
    pattern: dict[str, Number] = {}
    for leaf, modules in by_leaf.items():
        one_value = len(set(modules.values())) == 1
        keys = {leaf: next(iter(modules.values()))} if one_value else modules
        pattern |= {key: value for key, value in keys.items() if value != default}
    return pattern
