from stack.chaos.observed import Sample, Verdict, verdict


def sample(at_s: float, status: int = 200, *, ready: bool = True, took_s: float = 0.1) -> Sample:
    return Sample(at_s=at_s, took_s=took_s, status=status, is_proper=True, was_ready=ready)


def judged(*samples: Sample, may_refuse: bool = False) -> Verdict:
    return verdict(samples, bound_s=40, deadline_s=10, may_refuse=may_refuse)


GOOD = [sample(each) for each in range(30, 40)]


def test_a_fault_that_nobody_notices_recovered_at_once() -> None:
    found = judged(*[sample(each) for each in range(10)])
    assert (found.recovered_s, found.faults, found.statuses) == (0.0, (), "200:10")


def test_the_recovery_is_when_everything_is_right_and_stays_so() -> None:
    found = judged(sample(1, 503, ready=False), sample(5), sample(20, 503, ready=False), *GOOD)
    assert (found.recovered_s, found.faults) == (30, ())


def test_what_is_not_as_promised_is_told() -> None:
    assert "did not recover" in judged(sample(1, 503, ready=False)).faults
    late = [sample(each) for each in range(50, 60)]
    assert "recovered after 50 s, more than 40" in judged(sample(1, 503, ready=False), *late).faults
    assert "a request took 30 s" in judged(sample(1, took_s=30), *GOOD).faults
    assert "a client got 500" in judged(sample(1, 500, ready=False), *GOOD).faults
    assert "a connection was refused or cut" in judged(sample(1, 0, ready=False), *GOOD).faults
    assert judged(sample(1, 0, ready=False), *GOOD, may_refuse=True).faults == ()


def test_readiness_may_lag_a_little_and_not_lie() -> None:
    assert judged(sample(1, 503), sample(2, 503, ready=False), *GOOD).faults == ()
    lie = judged(sample(1, 503), sample(5, 503), *GOOD)
    assert "readiness said 200 for 4 s while requests failed" in lie.faults


def test_a_refusal_has_to_be_one_that_clients_understand() -> None:
    bare = Sample(at_s=1, took_s=0.1, status=503, is_proper=False, was_ready=False)
    assert "a 503 without Retry-After or envelope" in judged(bare, *GOOD).faults
