"""What was spent in the last minute. Pure: the time, in seconds of any clock, is an argument.

Imports nothing of the project.
"""

from array import array
from collections.abc import Iterable

PERIOD_S = 60.0
STEP_S = 0.5
"""Amounts spent this soon after each other are kept as one, so a window has at most 121."""
_FIRST_AT, _LAST_AT, _AMOUNT, _ENTRY = 0, 1, 2, 3


class SlidingWindow:
    """The sum of the amounts of the last PERIOD_S seconds; some count up to STEP_S longer.

    `spent` is the oldest first, three numbers each: first and last moment, and the amount.
    """

    def __init__(self, spent: Iterable[float] = ()) -> None:
        self.spent = array("d", spent)

    def add(self, amount: int, now: float) -> None:
        """Spend."""
        spent = self.spent
        if spent and now - spent[_FIRST_AT - _ENTRY] <= STEP_S:
            # Of several that spend from it one may be a little late.
            spent[_LAST_AT - _ENTRY] = max(now, spent[_LAST_AT - _ENTRY])
            spent[_AMOUNT - _ENTRY] += amount
        else:
            spent.extend((now, now, amount))

    def used(self, now: float) -> int:
        """What was spent in the window that ends now."""
        while self.spent and self.spent[_LAST_AT] + PERIOD_S <= now:
            del self.spent[:_ENTRY]
        return int(sum(self.spent[_AMOUNT::_ENTRY]))

    def below_in_s(self, limit: int, now: float) -> float:
        """In how many seconds the sum is below the limit, if nothing is spent meanwhile."""
        left, below_at = self.used(now), now
        moments, amounts = self.spent[_LAST_AT::_ENTRY], self.spent[_AMOUNT::_ENTRY]
        for last_at, amount in zip(moments, amounts, strict=True):
            if left < limit:
                break
            left -= int(amount)
            below_at = last_at + PERIOD_S
        return below_at - now

    def empty_in_s(self, now: float) -> float:
        """In how many seconds nothing counts any more."""
        return self.below_in_s(1, now)
