"""Which request enters the engine next: tenants by what they were served, adapters in turns.

Pure: no event loop, no vLLM, no Triton; whoever asks tells the time.

**Tenants.** Each has a counter of the tokens that it was served, prompts and answers, divided by
its weight, and the one with the lowest is next. A tenant that comes back starts at the level of
those that are there: having been quiet is no credit. This is VTC (Sheng et al., "Fairness in
Serving Large Language Models", OSDI 2024, https://arxiv.org/abs/2401.00588), whose bound holds:
between two tenants that both wait, the counters differ by no more than the engine holds at once.
A prompt is charged by an estimate when it enters, and by what vLLM counts from then on.

**Prompts.** VLLM reads a step's budget of them at a time (max_num_batched_tokens), and what a flood
has handed over is before all others but who has nothing in the engine (`fair_scheduler`). So no
more prompts enter than a step or two read; the others wait here, where the next is chosen anew.

**Adapters.** The engine has `max_adapters` slots. VLLM's scheduler passes over a waiting request
whose adapter is in none of them and takes later ones of those that are (vllm 0.32,
v1/core/sched/scheduler.py, "Scheduling would exceed max_loras, skip"), so it starves an adapter as
long as the others are busy. Here an adapter enters only when a slot is free; when one waits that
was served less, an adapter that has had its turn gets no new requests until its last one ends and
the slot is free. The turn is the quantum of deficit round robin (Shreedhar and Varghese, SIGCOMM
1995): without it each swap would leave batches of one. S-LoRA (Sheng et al., MLSys 2024,
https://arxiv.org/abs/2311.03285) bounds the adapters of a batch alike and names their fairness as
open.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


class QueueFullError(Exception):
    """As many requests of the tenant wait as may."""

    def __init__(self, *, waiting: int) -> None:
        super().__init__(
            f"{waiting} of your requests wait for this model already, the most that may."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may be in the engine, and wait for it.

    `max_running` sequences at most are in the engine, which is what it works on at once: none of
    them waits there. While several tenants are about, one that has some in it gets more only below
    `max_running_shared`: the rest is for those that have none, so that they find room and a short
    step. `max_adapters` and `max_adapters_shared` are the same for adapters. A tenant is about
    until `about_s` after its last request. While the engine has `max_prompt_tokens` of prompts to
    read no more enter; while several tenants are about, none that would make more of them than
    `max_prompt_tokens_shared`, but a tenant that has nothing in the engine is not held up by them.
    An adapter may keep its slot for `turn_s` against those that wait for one. `max_waiting` is of
    each tenant.
    """

    max_running: int
    max_running_shared: int
    max_prompt_tokens: int
    max_prompt_tokens_shared: int
    max_adapters: int
    max_adapters_shared: int
    max_waiting: int
    turn_s: float
    about_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as far as it matters here.

    `weight` is its tenant's share, `adapter` None for the base model, `sequences` how many answers
    it makes at once, `tokens` an estimate of its prompt.
    """

    tenant: str
    weight: float
    adapter: str | None
    sequences: int
    tokens: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Tenant:
    number: int
    served: float
    guessed: float = 0
    running: int = 0
    """Sequences in the engine."""
    slots: int = 0
    """Adapters in the engine."""
    waiting: int = 0
    lanes: "dict[str | None, _Lane]" = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        return bool(self.lanes)


@dataclass(slots=True, kw_only=True, eq=False)
class _Lane:
    """What a tenant asks of one adapter, or of the base model."""

    number: int
    tenant: _Tenant
    adapter: str | None
    served: float
    guessed: float = 0
    waiting: "dict[Place, None]" = field(default_factory=dict)
    running: int = 0

    @property
    def key(self) -> tuple[float, ...]:
        """The lowest is next: by the tenant, and then among its own lanes."""
        tenant = self.tenant
        served = tenant.served + tenant.guessed
        return (served, tenant.running, tenant.number, self.served + self.guessed, self.number)


@dataclass(slots=True, kw_only=True, eq=False)
class _Slot:
    """An adapter that has requests in the engine; `lane` is the one that it entered for last."""

    lane: _Lane
    since_s: float
    running: int = 0


@dataclass(slots=True, kw_only=True, eq=False)
class Place:
    """A request's place, from its coming to its end.

    `is_first` when its tenant had nothing in the engine as it entered, while others were about,
    and it gives the engine no more to read than `max_prompt_tokens_shared`.
    """

    asked: Asked
    lane: _Lane
    is_running: bool = False
    is_first: bool = False
    guessed: int = 0
    used: int = 0


class FairQueue:
    """The requests that wait, and those in the engine."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tenants: dict[str, _Tenant] = {}
        """Those about."""
        self._idle: dict[str, float] = {}
        """Since when those of them without requests have none, the longest first."""
        self._numbers = itertools.count()
        self._slots: dict[str, _Slot] = {}
        self._draining: dict[str, None] = {}
        """Adapters that get no new requests until their slot is free, the longest first."""
        self._last_level = 0.0
        self._unread = 0
        """Tokens of the prompts that the engine has been given and not told of yet, estimated."""
        self.running = 0
        """Sequences in the engine."""
        self.waiting = 0
        """Requests that wait."""

    def add(self, asked: Asked, now_s: float) -> Place:
        """Let a request wait; `admit` tells when it may enter. Raises QueueFullError."""
        self._forget_absent(now_s)
        known = self._tenants.get(asked.tenant)
        if known is not None and known.waiting >= self._limits.max_waiting:
            raise QueueFullError(waiting=known.waiting)
        tenant = self._present(asked)
        lane = self._lane(tenant, asked.adapter)
        place = Place(asked=asked, lane=lane)
        lane.waiting[place] = None
        tenant.waiting += 1
        self.waiting += 1
        return place

    def admit(self, now_s: float, unread: int) -> list[Place]:
        """Those that may enter the engine now, in order.

        Asked after every `add` and `leave`, and when the engine has read prompts: `unread` are the
        tokens of those that were charged and that it has yet to read.
        """
        self._forget_absent(now_s)
        admitted = []
        while self.waiting and self.running < self._limits.max_running:
            lanes = sorted(self._waiting_lanes(), key=lambda lane: lane.key)
            self._mark_draining(lanes, now_s)
            if (lane := self._next(lanes, unread)) is None:
                break
            admitted.append(self._start(lane, now_s))
        return admitted

    def charge(self, place: Place, tokens: int) -> None:
        """What an admitted request has used so far in all, in place of what was estimated."""
        self._count(place, guessed=0, used=tokens)

    def leave(self, place: Place, now_s: float) -> None:
        """A request has ended, or is not wanted any more."""
        lane, tenant = place.lane, place.lane.tenant
        if place.is_running:
            # One that ends before vLLM has counted anything is charged what it was estimated at.
            self._count(place, guessed=0, used=place.guessed + place.used)
            self._end(place)
        else:
            del lane.waiting[place]
            tenant.waiting -= 1
            self.waiting -= 1
        if not lane.waiting and not lane.running:
            del tenant.lanes[lane.adapter]
        if not tenant.is_active:
            self._idle[place.asked.tenant] = now_s
            self._last_level = tenant.served

    def _present(self, asked: Asked) -> _Tenant:
        tenant = self._tenants.get(asked.tenant)
        if tenant is None:
            tenant = _Tenant(number=next(self._numbers), served=0)
        if not tenant.is_active:
            active = (each.served for each in self._tenants.values() if each.is_active)
            tenant.served = max(tenant.served, min(active, default=self._last_level))
            self._idle.pop(asked.tenant, None)
            self._tenants[asked.tenant] = tenant
        return tenant

    def _lane(self, tenant: _Tenant, adapter: str | None) -> _Lane:
        lane = tenant.lanes.get(adapter)
        if lane is None:
            level = min((each.served for each in tenant.lanes.values()), default=0.0)
            lane = _Lane(number=next(self._numbers), tenant=tenant, adapter=adapter, served=level)
            tenant.lanes[adapter] = lane
        return lane

    def _forget_absent(self, now_s: float) -> None:
        while self._idle:
            name, since_s = next(iter(self._idle.items()))
            if now_s - since_s < self._limits.about_s:
                return
            del self._idle[name], self._tenants[name]

    def _waiting_lanes(self) -> Iterator[_Lane]:
        for tenant in self._tenants.values():
            for lane in tenant.lanes.values():
                if lane.waiting:
                    yield lane

    def _mark_draining(self, lanes: Sequence[_Lane], now_s: float) -> None:
        """Choose as many adapters to give up their slots as others wait for one."""
        claims = self._claims(lanes)
        while len(self._draining) > len(claims):
            self._draining.popitem()
        past_turn = [
            (slot.lane.key, adapter)
            for adapter, slot in self._slots.items()
            if adapter not in self._draining and now_s - slot.since_s >= self._limits.turn_s
        ]
        most_served = sorted(past_turn, reverse=True)
        for claim, (key, adapter) in zip(claims[len(self._draining) :], most_served, strict=False):
            if claim.key < key:
                self._draining[adapter] = None

    def _claims(self, lanes: Sequence[_Lane]) -> list[_Lane]:
        """Those of the lanes whose adapters need a slot that is not free."""
        by_adapter: dict[str, _Lane] = {}
        for lane in lanes:
            if lane.adapter is not None and lane.adapter not in self._slots:
                by_adapter.setdefault(lane.adapter, lane)
        claims, taken = [], len(self._slots)
        for lane in by_adapter.values():
            if taken < self._max_adapters(lane.tenant):
                taken += 1
            else:
                claims.append(lane)
        return claims

    def _next(self, lanes: Sequence[_Lane], unread: int) -> _Lane | None:
        """The first of the lanes whose adapter may be used, when it fits.

        Nobody slips past it: what asks for many answers at once would never find room for them,
        and who was served most would always have something in the engine.
        """
        lane = next((lane for lane in lanes if self._may_use_adapter(lane)), None)
        return lane if lane is not None and self._fits(lane, unread) else None

    def _fits(self, lane: _Lane, unread: int) -> bool:
        place = next(iter(lane.waiting))
        limits = self._limits
        running = self.running + self._sequences(place)
        if not lane.tenant.running:
            return running <= limits.max_running
        unread += self._unread
        if not self._is_shared:
            return running <= limits.max_running and unread < limits.max_prompt_tokens
        prompts = unread + place.asked.tokens if unread else 0
        return running <= limits.max_running_shared and prompts <= limits.max_prompt_tokens_shared

    def _may_use_adapter(self, lane: _Lane) -> bool:
        if lane.adapter is None:
            return True
        if lane.adapter in self._slots:
            return lane.adapter not in self._draining
        return len(self._slots) < self._max_adapters(lane.tenant)

    def _max_adapters(self, tenant: _Tenant) -> int:
        is_shared = self._is_shared and tenant.slots
        return self._limits.max_adapters_shared if is_shared else self._limits.max_adapters

    @property
    def _is_shared(self) -> bool:
        """Whether several tenants are about."""
        return len(self._tenants) > 1

    def _sequences(self, place: Place) -> int:
        """More than the engine takes at once it takes one after the other."""
        return min(place.asked.sequences, self._limits.max_running)

    def _start(self, lane: _Lane, now_s: float) -> Place:
        place = next(iter(lane.waiting))
        del lane.waiting[place]
        place.is_running = True
        sequences = self._sequences(place)
        place.is_first = (
            self._is_shared
            and not lane.tenant.running
            and sequences * place.asked.tokens <= self._limits.max_prompt_tokens_shared
        )
        lane.running += 1
        lane.tenant.running += sequences
        lane.tenant.waiting -= 1
        self.running += sequences
        self.waiting -= 1
        if lane.adapter is not None:
            slot = self._slots.setdefault(lane.adapter, _Slot(lane=lane, since_s=now_s))
            slot.lane = lane
            slot.running += 1
            lane.tenant.slots += lane.running == 1
        self._count(place, guessed=max(1, place.asked.tokens), used=0)
        return place

    def _end(self, place: Place) -> None:
        lane = place.lane
        sequences = self._sequences(place)
        lane.running -= 1
        lane.tenant.running -= sequences
        self.running -= sequences
        if lane.adapter is not None:
            slot = self._slots[lane.adapter]
            slot.running -= 1
            lane.tenant.slots -= lane.running == 0
            if not slot.running:
                del self._slots[lane.adapter]
                self._draining.pop(lane.adapter, None)

    def _count(self, place: Place, *, guessed: int, used: int) -> None:
        for each in (place.lane.tenant, place.lane):
            each.guessed += (guessed - place.guessed) / place.asked.weight
            each.served += (used - place.used) / place.asked.weight
        self._unread += guessed - place.guessed
        place.guessed, place.used = guessed, used
