"""What must be true while tenants do things at random. Pure: no I/O, no clock.

Moments are in seconds of whatever clock the caller has. What is only known to lie between two
moments, as a change does between its request and its answer, is several values that may be true.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeVar

Value = TypeVar("Value")
KEPT_REVISIONS = 3


class Timeline(Generic[Value]):
    """Which values may be true, and from when on."""

    def __init__(self, *values: Value) -> None:
        self._steps: list[tuple[float, frozenset[Value]]] = [(float("-inf"), frozenset(values))]

    @property
    def now(self) -> frozenset[Value]:
        """What may be true at the end."""
        return self._steps[-1][1]

    def settle(self, at_s: float, values: Iterable[Value]) -> None:
        """From now on it is one of these."""
        self._steps.append((at_s, frozenset(values)))

    def widen(self, at_s: float, values: Iterable[Value]) -> None:
        """From now on it may also be one of these."""
        self.settle(at_s, self.now.union(values))

    def during(self, begun_s: float, ended_s: float) -> frozenset[Value]:
        """What may have been true at some moment between these."""
        ends = [start for start, _ in self._steps[1:]] + [float("inf")]
        return frozenset[Value]().union(
            *(
                values
                for (start, values), end in zip(self._steps, ends, strict=True)
                if start <= ended_s and end >= begun_s
            )
        )


class Nothing(Enum):
    """Why a name answers nothing."""

    ABSENT = auto()
    """A 404."""
    LOADING = auto()
    """A first revision that is on its way: a 503, or the answer once it is there."""


State = int | Nothing
"""What a name answers with: a content by its number, or nothing."""
SILENT = frozenset(Nothing)
BASE = -1
"""The base model's own content."""


@dataclass(slots=True)
class Name:
    """A name of a tenant's: the adapter that has it, if any, and what it may answer when."""

    states: Timeline[State] = field(default_factory=lambda: Timeline(Nothing.ABSENT))
    id: str | None = None
    etag: str | None = None
    revisions: dict[int, int] = field(default_factory=dict)
    """Every revision's content since the adapter was made, by the revision's number."""
    fetching: bool = False
    """Whether a revision comes from a hub that isn't here yet."""

    @property
    def newest(self) -> int:
        """The newest revision's number."""
        return max(self.revisions)

    def kept(self) -> list[int]:
        """The numbers of the revisions that can be gone back to, whatever serves."""
        return sorted(self.revisions)[-KEPT_REVISIONS:]

    def begin(self, at_s: float, *states: State) -> None:
        """A change is asked for that may lead to these."""
        self.states.widen(at_s, states)

    def revise(self, at_s: float, number: int, content: int, *, ready: bool) -> None:
        """The adapter has a new revision; until that is ready, what answered before may still."""
        if not self.revisions:
            self.states.settle(at_s, (Nothing.LOADING, content))
        self.revisions[number] = content
        self.states.widen(at_s, (content,))
        if ready:
            self.states.settle(at_s, (content,))

    def vanish(self, at_s: float) -> None:
        """The adapter is gone."""
        self.id, self.etag, self.fetching = None, None, False
        self.revisions = {}
        self.states.settle(at_s, (Nothing.ABSENT,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question that was answered: the names that each target set in question had, and when."""

    begun_s: float
    ended_s: float
    target_sets: frozenset[frozenset[str]]
    """One for a model asked for by name; those that an alias may have had."""

    def contents(self, names: Mapping[str, Timeline[State]]) -> frozenset[int]:
        """Those that may have answered."""
        wanted = frozenset[str]().union(*self.target_sets)
        states = frozenset[State]().union(*(self._states(names[each]) for each in wanted))
        return frozenset(state for state in states if isinstance(state, int))

    def refusals(self, names: Mapping[str, Timeline[State]]) -> frozenset[Nothing]:
        """Why it may have failed; empty when one target could answer all the time."""
        always = frozenset.intersection(*self.target_sets)
        if any(not self._states(names[each]) & SILENT for each in always):
            return frozenset()
        wanted = frozenset[str]().union(*self.target_sets)
        why = frozenset[State]().union(*(self._states(names[each]) for each in wanted)) & SILENT
        return frozenset(each for each in Nothing if each in why) | (
            {Nothing.ABSENT} if frozenset() in self.target_sets else frozenset()
        )

    def _states(self, states: Timeline[State]) -> frozenset[State]:
        return states.during(self.begun_s, self.ended_s)


def same_revisions(
    known: Mapping[int, int], found: Mapping[int, int], attempted: Collection[int]
) -> bool:
    """Whether what is found can have come of what was known by attempts with these contents."""
    if not known:
        return all(content in attempted for content in found.values())
    return all(
        known[number] == content if number in known else content in attempted
        for number, content in found.items()
    )
