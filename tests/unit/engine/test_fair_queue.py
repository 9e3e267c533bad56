"""Which request enters the engine next, in a queue that time and work are told to."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.fair_queue import Asked, FairQueue, Limits, Place, QueueFullError

LIMITS = Limits(
    max_running=4,
    max_running_shared=3,
    max_prompt_tokens=1_000_000,
    max_prompt_tokens_shared=1_000_000,
    max_adapters=2,
    max_adapters_shared=2,
    max_waiting=1000,
    turn_s=1.0,
    about_s=10.0,
)

ROOMY = replace(LIMITS, max_running=16, max_running_shared=16)
"""Room for more of each adapter than one, so that a slot is never free by chance."""


def asked(
    tenant: str,
    adapter: str | None = None,
    *,
    weight: float = 1,
    sequences: int = 1,
    tokens: int = 10,
) -> Asked:
    return Asked(tenant=tenant, weight=weight, adapter=adapter, sequences=sequences, tokens=tokens)


class Engine:
    """A queue with its engine: requests enter, use tokens and end, one after the other."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.queue = FairQueue(limits)
        self.now_s = 0.0
        self.unread = 0
        self.inside: list[Place] = []
        self.entered: list[Asked] = []

    def ask(self, request: Asked, count: int = 1) -> list[Place]:
        places = []
        for _ in range(count):
            places.append(self.queue.add(request, self.now_s))
            self.admit()
        return places

    def admit(self) -> None:
        places = self.queue.admit(self.now_s, self.unread)
        self.inside += places
        self.entered += [place.asked for place in places]

    def end(self, place: Place | None = None, *, used: int | None = None) -> Asked:
        """End the oldest, or the one that is meant."""
        place = place or self.inside[0]
        if place in self.inside:
            self.inside.remove(place)
            self.queue.charge(place, place.asked.tokens if used is None else used)
        self.queue.leave(place, self.now_s)
        self.admit()
        return place.asked

    def keep_busy(self, flood: Sequence[Asked], steps: int, *, used: int = 10) -> None:
        """Whatever ends is asked anew when it is of the flood, a tenth of a second each."""
        for _ in range(steps):
            self.now_s += 0.1
            if (ended := self.end(used=used)) in flood:
                self.ask(ended)

    def tenants(self) -> list[str]:
        return [each.tenant for each in self.entered]

    def adapters(self) -> list[str | None]:
        return [each.adapter for each in self.entered]


def test_an_empty_engine_is_entered_at_once() -> None:
    engine = Engine()
    (place,) = engine.ask(asked("a"))
    assert place.is_running
    assert (engine.queue.running, engine.queue.waiting) == (1, 0)


def test_a_tenant_alone_has_the_whole_engine() -> None:
    engine = Engine()
    engine.ask(asked("a"), 6)
    assert (engine.queue.running, engine.queue.waiting) == (4, 2)


def test_beside_others_a_tenant_leaves_room_for_who_has_nothing_in_the_engine() -> None:
    engine = Engine()
    engine.ask(asked("b"))
    engine.ask(asked("a"), 6)
    assert Counter(engine.tenants()) == {"b": 1, "a": 2}
    engine.ask(asked("c"))
    assert engine.tenants()[-1] == "c"


def test_room_is_left_for_a_tenant_that_was_there_a_moment_ago_and_not_for_one_long_gone() -> None:
    engine = Engine()
    engine.end(engine.ask(asked("b"))[0])
    engine.ask(asked("a"), 6)
    assert engine.queue.running == 3
    engine.now_s += LIMITS.about_s
    engine.admit()
    assert engine.queue.running == 4


def test_beside_others_a_request_is_first_whose_tenant_has_nothing_in_the_engine() -> None:
    engine = Engine(ROOMY)
    for tenant in ("a", "a", "b", "b", "a"):
        engine.ask(asked(tenant))
    assert [place.is_first for place in engine.inside] == [False, False, True, False, False]
    engine.end(engine.inside[2])
    engine.end(engine.inside[2])
    engine.ask(asked("b"))
    assert engine.inside[-1].is_first


@pytest.mark.parametrize(
    ("sequences", "tokens", "first"),
    [(1, 100, ["b"]), (2, 50, ["b"]), (1, 101, []), (2, 51, [])],
)
def test_a_request_is_first_only_if_a_step_reads_all_of_it(
    sequences: int, tokens: int, first: list[str]
) -> None:
    engine = Engine(replace(ROOMY, max_prompt_tokens_shared=100))
    engine.ask(asked("a"))
    engine.ask(asked("b", sequences=sequences, tokens=tokens))
    assert [place.asked.tenant for place in engine.inside if place.is_first] == first


def test_a_flood_that_came_first_does_not_delay_another_tenant() -> None:
    engine = Engine()
    engine.ask(asked("flood"), 100)
    engine.ask(asked("quiet"))
    engine.end()
    assert engine.tenants()[-1] == "quiet"


def test_tenants_that_wait_take_turns_by_what_they_used() -> None:
    engine = Engine(replace(LIMITS, max_running=1, max_running_shared=1))
    engine.ask(asked("long"), 100)
    engine.ask(asked("short"), 100)
    for _ in range(60):
        engine.end(used=20 if engine.inside[0].asked.tenant == "long" else 10)
    counts = Counter(engine.tenants())
    assert counts["short"] == pytest.approx(2 * counts["long"], abs=2)


@pytest.mark.parametrize("weight", [0.5, 2, 3, 10])
def test_a_tenant_is_served_in_proportion_to_its_weight(weight: float) -> None:
    engine = Engine()
    engine.ask(asked("light"), 500)
    engine.ask(asked("heavy", weight=weight), 500)
    for _ in range(300):
        engine.end()
    waited = Counter(engine.tenants()[-250:])
    assert waited["heavy"] / waited["light"] == pytest.approx(weight, rel=0.2)


def test_what_an_answer_uses_counts_while_it_is_made() -> None:
    engine = Engine(replace(LIMITS, max_running=2, max_running_shared=2))
    (long, _) = (*engine.ask(asked("a")), *engine.ask(asked("b")))
    engine.ask(asked("a"))
    engine.ask(asked("b"))
    engine.queue.charge(long, 1000)
    engine.end(engine.inside[1])
    assert engine.tenants()[-1] == "b"


def test_a_prompt_counts_by_its_estimate_until_it_is_counted() -> None:
    engine = Engine(replace(LIMITS, max_running=3, max_running_shared=3))
    engine.ask(asked("long", tokens=1000))
    engine.ask(asked("short"), 2)
    engine.ask(asked("long"))
    engine.ask(asked("short"))
    engine.end(engine.inside[1])
    assert engine.tenants()[-1] == "short"


def test_a_wrong_estimate_is_corrected() -> None:
    engine = Engine(replace(LIMITS, max_running=1, max_running_shared=1))
    engine.ask(asked("a", tokens=100_000))
    engine.ask(asked("b"), 2)
    engine.ask(asked("a"))
    engine.end(used=10)
    engine.end(used=10)
    assert engine.tenants() == ["a", "b", "a"]


def test_having_been_quiet_is_no_credit() -> None:
    engine = Engine(replace(LIMITS, max_running=1, max_running_shared=1))
    engine.end(engine.ask(asked("late"))[0])
    engine.ask(asked("busy"), 100)
    for _ in range(50):
        engine.end()
    engine.ask(asked("late"), 20)
    for _ in range(20):
        engine.end()
    assert Counter(engine.tenants()[-20:])["busy"] >= 9


def test_one_that_was_served_while_nobody_else_was_there_owes_nothing_for_it() -> None:
    engine = Engine(replace(LIMITS, max_running=1, max_running_shared=1))
    for place in engine.ask(asked("a"), 50):
        engine.end(place)
    engine.ask(asked("b"), 20)
    engine.ask(asked("a"), 20)
    for _ in range(20):
        engine.end()
    assert Counter(engine.tenants()[-20:])["a"] >= 9


def test_leaving_and_coming_back_wipes_out_no_debt() -> None:
    engine = Engine(replace(LIMITS, max_running=2, max_running_shared=2))
    (big,) = engine.ask(asked("a"))
    engine.ask(asked("b"), 20)
    engine.end(big, used=100)
    engine.ask(asked("a"), 5)
    for _ in range(8):
        engine.end(used=10)
    assert "a" not in engine.tenants()[1:10]


def test_an_adapter_without_a_slot_gets_one_while_others_are_flooded() -> None:
    flood = [asked("a", "one"), asked("b", "two")]
    engine = Engine(ROOMY)
    for each in flood:
        engine.ask(each, 10)
    engine.ask(asked("c", "three"))
    engine.keep_busy(flood, 40)
    assert "three" in engine.adapters()


def test_an_adapter_without_a_slot_gets_one_though_all_are_of_one_tenant() -> None:
    flood = [asked("a", "one"), asked("a", "two")]
    engine = Engine(ROOMY)
    for each in flood:
        engine.ask(each, 10)
    engine.ask(asked("a", "three"))
    engine.keep_busy(flood, 40)
    assert "three" in engine.adapters()


def test_a_slot_is_not_given_up_for_one_that_was_served_more() -> None:
    engine = Engine(replace(LIMITS, max_adapters=1, max_adapters_shared=1))
    engine.ask(asked("less", "one"), 2)
    engine.end(engine.ask(asked("more"))[0], used=1000)
    engine.ask(asked("more", "two"))
    engine.now_s = 2 * LIMITS.turn_s
    engine.ask(asked("less", "one"))
    assert engine.adapters() == ["one", "one", None, "one"]


def test_an_adapter_keeps_its_slot_for_its_turn() -> None:
    flood = [asked("a", "one"), asked("a", "two")]
    engine = Engine(replace(LIMITS, turn_s=2))
    for each in [*flood, *flood]:
        engine.ask(each, 1)
    for each in flood:
        engine.ask(each, 5)
    engine.ask(asked("a", "three"))
    engine.keep_busy(flood, 19)
    assert "three" not in engine.adapters()
    engine.keep_busy(flood, 10)
    assert "three" in engine.adapters()


def test_no_more_slots_are_given_up_than_adapters_wait() -> None:
    engine = Engine()
    engine.ask(asked("a", "one"), 2)
    engine.ask(asked("b", "two"), 2)
    engine.ask(asked("c", "three"))
    engine.now_s = LIMITS.turn_s
    engine.ask(asked("a", "one"), 10)
    engine.ask(asked("b", "two"), 10)
    running = Counter(place.asked.adapter for place in engine.inside)
    (kept,) = (each for each in running if each not in engine.queue._draining)
    assert kept is not None


def test_the_slot_of_who_waits_no_more_is_not_given_up() -> None:
    engine = Engine(replace(LIMITS, max_adapters=1, max_adapters_shared=1))
    engine.ask(asked("a", "one"))
    (gone,) = engine.ask(asked("b", "two"))
    engine.now_s = LIMITS.turn_s
    engine.ask(asked("a", "one"))
    assert engine.adapters() == ["one"]
    engine.end(gone)
    assert engine.adapters() == ["one", "one"]


def test_the_base_model_needs_no_slot() -> None:
    engine = Engine()
    for adapter in ("one", "two", "three"):
        engine.ask(asked("a", adapter))
    engine.ask(asked("a"))
    assert engine.adapters() == ["one", "two", None]


def test_a_slot_is_left_for_a_tenant_that_has_none() -> None:
    engine = Engine(replace(LIMITS, max_adapters_shared=1))
    engine.ask(asked("quiet"))
    for adapter in ("one", "two"):
        engine.ask(asked("many", adapter))
    assert engine.adapters() == [None, "one"]
    engine.ask(asked("quiet", "mine"))
    assert engine.adapters()[-1] == "mine"


def test_an_adapter_that_may_not_have_the_last_slot_waits_for_another_that_is_given_up() -> None:
    flood = [asked("many", "one")]
    engine = Engine(replace(LIMITS, max_adapters_shared=1))
    engine.ask(asked("quiet"))
    engine.ask(flood[0], 5)
    engine.ask(asked("many", "two"))
    engine.keep_busy(flood, 30)
    assert "two" in engine.adapters()


def test_slots_are_shared_by_weight() -> None:
    flood = [asked("light", "one"), asked("heavy", "two", weight=3)]
    engine = Engine(replace(LIMITS, max_adapters=1, max_adapters_shared=1))
    for each in flood:
        engine.ask(each, 20)
    engine.keep_busy(flood, 3000)
    counts = Counter(engine.adapters()[100:])
    assert counts["two"] / counts["one"] == pytest.approx(3, rel=0.2)


def test_all_adapters_are_served_alike_when_there_are_more_than_slots() -> None:
    flood = [asked(f"t{number}", f"adapter-{number}") for number in range(6)]
    engine = Engine(replace(LIMITS, max_running=8, max_running_shared=8))
    for each in flood:
        engine.ask(each, 8)
    engine.keep_busy(flood, 3000)
    counts = Counter(engine.adapters()[200:])
    assert max(counts.values()) <= 1.3 * min(counts.values())


def test_what_asks_for_many_answers_at_once_is_not_passed_by() -> None:
    engine = Engine()
    engine.ask(asked("a"), 4)
    engine.ask(asked("b", sequences=4))
    engine.ask(asked("a"), 4)
    for _ in range(4):
        engine.end()
    assert engine.tenants() == ["a", "a", "a", "a", "b"]


def test_what_asks_for_more_answers_than_the_engine_takes_has_it_alone() -> None:
    engine = Engine()
    engine.ask(asked("a", sequences=100))
    engine.ask(asked("a"))
    assert (engine.queue.running, engine.queue.waiting) == (4, 1)


def reading(*, alone: int, shared: int) -> Engine:
    limits = replace(ROOMY, max_prompt_tokens=alone, max_prompt_tokens_shared=shared)
    return Engine(limits)


def test_no_more_prompts_enter_than_the_engine_reads_soon() -> None:
    engine = reading(alone=50, shared=20)
    engine.ask(asked("a", tokens=25), 5)
    assert len(engine.inside) == 2
    for place in engine.inside:
        engine.queue.charge(place, 30)
    engine.unread = 60
    engine.admit()
    assert len(engine.inside) == 2
    engine.unread = 30
    engine.admit()
    assert len(engine.inside) == 3
    engine.unread = 0
    engine.admit()
    assert len(engine.inside) == 4


def test_beside_others_fewer_prompts_enter_and_whoever_has_nothing_in_the_engine_is_next() -> None:
    engine = reading(alone=50, shared=20)
    engine.end(engine.ask(asked("quiet", tokens=1))[0])
    engine.ask(asked("flood", tokens=15), 5)
    assert engine.tenants() == ["quiet", "flood"]
    engine.ask(asked("quiet", tokens=30), 2)
    assert engine.tenants() == ["quiet", "flood", "quiet"]


def test_a_prompt_longer_than_the_engine_reads_soon_enters_when_none_is_unread() -> None:
    engine = reading(alone=50, shared=20)
    engine.ask(asked("other", tokens=1))
    engine.queue.charge(engine.inside[0], 1)
    short, long = engine.ask(asked("a", tokens=5))[0], engine.ask(asked("a", tokens=500))[0]
    assert not long.is_running
    engine.queue.charge(short, 5)
    engine.admit()
    assert long.is_running


def test_one_that_leaves_before_it_was_charged_makes_room_for_its_prompt() -> None:
    engine = reading(alone=40, shared=40)
    first, second = engine.ask(asked("a", tokens=40), 2)
    assert not second.is_running
    engine.queue.leave(first, engine.now_s)
    engine.admit()
    assert second.is_running


def test_more_than_may_wait_are_refused_and_others_are_not() -> None:
    engine = Engine(replace(LIMITS, max_waiting=2))
    engine.ask(asked("a"), 6)
    with pytest.raises(QueueFullError, match="2 of your requests wait"):
        engine.ask(asked("a"))
    engine.ask(asked("b"))
    assert engine.queue.waiting == 3


def test_who_left_is_forgotten_after_a_while() -> None:
    engine = Engine()
    for number in range(1000):
        engine.end(engine.ask(asked(f"t{number}", "one"))[0])
        engine.now_s += 1
    assert len(engine.queue._tenants) <= LIMITS.about_s + 1


@given(
    weights=st.lists(st.integers(1, 8), min_size=2, max_size=5),
    uses=st.lists(st.integers(1, 50), min_size=5, max_size=5),
    max_running=st.integers(1, 8),
)
@settings(deadline=None)
def test_two_tenants_that_wait_are_never_further_apart_than_what_the_engine_holds(
    weights: list[int], uses: list[int], max_running: int
) -> None:
    limits = replace(LIMITS, max_running=max_running, max_running_shared=max_running)
    engine = Engine(limits)
    for number, weight in enumerate(weights):
        engine.ask(asked(f"t{number}", weight=weight, tokens=1), 400)
    for _ in range(300):
        use = uses[int(engine.inside[0].asked.tenant[1:])]
        engine.end(used=use)
    served = [tenant.served for tenant in engine.queue._tenants.values() if tenant.waiting]
    # The paper's bound is twice the larger of a prompt and what a full engine makes.
    assert max(served) - min(served) <= 2 * max_running * max(uses)


ADAPTERS = (None, "one", "two", "three", "four")


class AnyOrder(RuleBasedStateMachine):
    """Requests come, use tokens, end and are given up in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(replace(LIMITS, max_adapters_shared=1, max_waiting=5))
        self.alive: list[Place] = []

    @rule(
        tenant=st.sampled_from("abc"),
        adapter=st.sampled_from(ADAPTERS),
        weight=st.sampled_from([0.5, 1, 4]),
        sequences=st.integers(1, 6),
        tokens=st.integers(0, 100),
    )
    def come(
        self, tenant: str, adapter: str | None, weight: float, sequences: int, tokens: int
    ) -> None:
        request = asked(tenant, adapter, weight=weight, sequences=sequences, tokens=tokens)
        try:
            self.alive += self.engine.ask(request)
        except QueueFullError:
            waiting = [each for each in self.alive if not each.is_running]
            assert [each.asked.tenant for each in waiting].count(tenant) == 5

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), used=st.integers(0, 100))
    def go(self, data: st.DataObject, used: int) -> None:
        place = data.draw(st.sampled_from(self.alive))
        self.alive.remove(place)
        self.engine.end(place, used=used)

    @rule(passed_s=st.sampled_from([0.1, 1.0, 20.0]))
    def wait(self, passed_s: float) -> None:
        self.engine.now_s += passed_s

    @invariant()
    def the_engine_never_has_to_let_anything_wait(self) -> None:
        inside = [each.asked for each in self.alive if each.is_running]
        assert sum(min(each.sequences, 4) for each in inside) <= LIMITS.max_running
        assert len({each.adapter for each in inside} - {None}) <= LIMITS.max_adapters

    @invariant()
    def nothing_waits_for_an_empty_engine(self) -> None:
        is_idle = not any(each.is_running for each in self.alive)
        assert not (is_idle and self.alive)

    @invariant()
    def it_counts_right(self) -> None:
        inside = [each.asked for each in self.alive if each.is_running]
        assert self.engine.queue.running == sum(min(each.sequences, 4) for each in inside)
        assert self.engine.queue.waiting == len(self.alive) - len(inside)

    def teardown(self) -> None:
        """Whatever waits gets its turn when nothing new comes, and nothing is left behind."""
        for _ in itertools.repeat(None, len(self.alive)):
            self.engine.now_s += 1
            self.engine.end()
        assert not self.engine.inside
        assert (self.engine.queue.running, self.engine.queue.waiting) == (0, 0)
        assert not self.engine.queue._slots
        assert not self.engine.queue._draining


TestAnyOrder = AnyOrder.TestCase
