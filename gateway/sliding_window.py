"""What was spent in the last minute. Pure: the time, in seconds of any clock, is an argument.

Imports nothing of the project.
"""

from collections import deque
from dataclasses import dataclass

PERIOD_S = 60.0
STEP_S = 0.5
"""Amounts spent this soon after each other are kept as one, so a window has at most 121."""


@dataclass(slots=True, kw_only=True)
class _Spent:
    first_at: float
    last_at: float
    amount: int


class SlidingWindow:
    """The sum of the amounts of the last PERIOD_S seconds; some count up to STEP_S longer."""

    def __init__(self) -> None:
        self._spent: deque[_Spent] = deque()
        self._used = 0

    def add(self, amount: int, now: float) -> None:
        """Spend."""
        self._used += amount
        newest = self._spent[-1] if self._spent else None
        if newest is not None and now - newest.first_at <= STEP_S:
            newest.last_at = now
            newest.amount += amount
        else:
            self._spent.append(_Spent(first_at=now, last_at=now, amount=amount))

    def used(self, now: float) -> int:
        """What was spent in the window that ends now."""
        while self._spent and self._spent[0].last_at + PERIOD_S <= now:
            self._used -= self._spent.popleft().amount
        return self._used

    def below_in_s(self, limit: int, now: float) -> float:
        """In how many seconds the sum is below the limit, if nothing is spent meanwhile."""
        left, below_at = self.used(now), now
        for spent in self._spent:
            if left < limit:
                break
            left -= spent.amount
            below_at = spent.last_at + PERIOD_S
        return below_at - now

    def empty_in_s(self, now: float) -> float:
        """In how many seconds nothing counts any more."""
        return self.below_in_s(1, now)
