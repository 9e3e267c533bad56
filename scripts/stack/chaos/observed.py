"""What clients saw during a fault, and the verdict on it. Pure: no clock, no I/O."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

STEADY_S = 3.0
"""So long everything has to be right, to be called recovered; and so long readiness may lag."""
ALLOWED = frozenset({503, 504, 507})
"""Besides 429, what a fault may cost a client: with Retry-After, in OpenAI's envelope."""
HANG_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request: when it was begun and how long it took, in seconds; `status` 0 is no answer.

    `is_proper` is whether a refusal has OpenAI's envelope and Retry-After. `was_ready` is what
    /health/ready said just before.
    """

    at_s: float
    took_s: float
    status: int
    is_proper: bool
    was_ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How a fault went; `recovered_s` is None when it never did. No `faults`: as promised."""

    recovered_s: float | None
    longest_s: float
    statuses: str
    faults: tuple[str, ...]


def verdict(
    samples: Sequence[Sample], *, bound_s: float, deadline_s: float, may_refuse: bool
) -> Verdict:
    """The verdict on the samples since the fault, in the order of their beginning.

    `bound_s` is how long the recovery may take, `deadline_s` the requests' own. `may_refuse` is
    whether connections may be refused, as while the gateway itself is gone.
    """
    recovered = _recovered_s(samples)
    longest = max((each.took_s for each in samples), default=0.0)
    faults = []
    if recovered is None:
        faults.append("did not recover")
    elif recovered > bound_s:
        faults.append(f"recovered after {recovered:.0f} s, more than {bound_s:.0f}")
    if longest > deadline_s + HANG_S:
        faults.append(f"a request took {longest:.0f} s")
    for each in samples:
        if each.status == 0 and not may_refuse:
            faults.append("a connection was refused or cut")
        elif each.status >= 500 and each.status not in ALLOWED:  # noqa: PLR2004 - HTTP's
            faults.append(f"a client got {each.status}")
        elif each.status in ALLOWED and not each.is_proper:
            faults.append(f"a {each.status} without Retry-After or envelope")
    if (lie_s := _longest_lie_s(samples)) > STEADY_S:
        faults.append(f"readiness said 200 for {lie_s:.0f} s while requests failed")
    counted = Counter(each.status for each in samples)
    return Verdict(
        recovered_s=recovered,
        longest_s=longest,
        statuses=" ".join(f"{status}:{count}" for status, count in sorted(counted.items())),
        faults=tuple(dict.fromkeys(faults)),
    )


def _is_good(sample: Sample) -> bool:
    return sample.status == 200 and sample.was_ready  # noqa: PLR2004 - HTTP's


def _recovered_s(samples: Sequence[Sample]) -> float | None:
    """When the good samples began that go on to the end, and for STEADY_S at least."""
    bad = [number for number, each in enumerate(samples) if not _is_good(each)]
    good = samples[bad[-1] + 1 :] if bad else samples
    if not good or good[-1].at_s - good[0].at_s < STEADY_S:
        return None
    return good[0].at_s if bad else 0.0


def _longest_lie_s(samples: Sequence[Sample]) -> float:
    longest, since = 0.0, None
    for each in samples:
        if each.was_ready and each.status not in (200, 429):
            since = each.at_s if since is None else since
            longest = max(longest, each.at_s - since)
        else:
            since = None
    return longest
