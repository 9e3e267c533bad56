"""vLLM's scheduler, which reads the prompts of tenants that have nothing in the engine first.

Runs in vLLM's engine core process, as `scheduler_cls`. A step reads up to max_num_batched_tokens of
prompts, and whoever comes meanwhile waits for its end, and then for its own. So while several
tenants are about, a step

- reads prompts of priority FIRST before all others, if they are no longer than a step, and the
  others' not at all, though never twice in a row;
- reads of the others' no more than half of what it could, so that it ends soon.

Answers are not held up: every step makes a token of each. Chunks of prompts that bound the time of
a step are Sarathi-Serve's (Agrawal et al., OSDI 2024, https://arxiv.org/abs/2403.02310).
"""

import time
from itertools import chain, dropwhile, takewhile
from typing import TYPE_CHECKING

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from engine.admission_settings import ABOUT_S
from engine.priority import FIRST, OTHERS

if TYPE_CHECKING:
    from vllm.config import LoRAConfig, SchedulerConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.request_queue import RequestQueue
    from vllm.v1.request import Request

PATIENCE_S = 2.0
"""How long a prompt may wait in vLLM while first ones come; then it is one itself."""


def read_in_turns(config: "SchedulerConfig") -> None:
    """Have the engine use this scheduler, unless it is to use another already.

    The operator's, or vLLM's own for a kind of models, diffusion say.
    """
    if config.scheduler_cls is None:
        kind = FairAsyncScheduler if config.async_scheduling else FairScheduler
        config.scheduler_cls = f"{kind.__module__}.{kind.__qualname__}"
        config.policy = "priority"


class _FairSteps:
    """Mixed into vLLM's schedulers, in front of them."""

    running: "list[Request]"
    waiting: "RequestQueue"
    deferred_waiting: "set[Request]"
    lora_config: "LoRAConfig | None"
    scheduler_config: "SchedulerConfig"
    max_num_scheduled_tokens: int
    max_num_active_reqs: int
    need_mamba_block_aligned_split: bool

    _shared_until_s = 0.0
    _held_back = False

    def add_request(self, request: "Request") -> None:
        """Take a request in; one of priority FIRST tells that several tenants are about.

        One whose prompt takes more than a step is not read first: others would wait for all of it.
        """
        if is_first(request):
            self._shared_until_s = time.monotonic() + ABOUT_S
            if request.num_tokens > self.max_num_scheduled_tokens:
                request.priority = OTHERS
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, throttle_prefills: bool = False) -> "SchedulerOutput":  # noqa: FBT001, FBT002
        """Choose what the next step works on."""
        is_shared = time.monotonic() < self._shared_until_s
        if throttle_prefills or not is_shared or not self._reads_any_part():
            return super().schedule(throttle_prefills)  # type: ignore[misc]
        self._let_the_oldest_pass()
        step, active = self.max_num_scheduled_tokens, self.max_num_active_reqs
        first, half_read = self._first(), self._half_read_of_others()
        self._held_back = not self._held_back and bool(first) and self._adapters_fit()
        # Others' half-read prompts are taken out of this step.
        held_back = half_read if self._held_back else []
        self.running = [each for each in self.running if each not in held_back]
        self.max_num_scheduled_tokens = min(step, self._budget(first, half_read))
        self.max_num_active_reqs -= len(held_back)
        try:
            return super().schedule()  # type: ignore[misc]
        finally:
            self.max_num_scheduled_tokens, self.max_num_active_reqs = step, active
            self.running += held_back
            for each in self.running:
                # What makes its answer is no more than others; nor is what takes steps yet.
                if is_first(each) and not (each.is_prefill_chunk and unread_tokens(each) <= step):
                    each.priority = OTHERS

    def _reads_any_part(self) -> bool:
        """Or a prompt could wait forever for room in a smaller step."""
        config = self.scheduler_config
        return (
            config.enable_chunked_prefill
            and not config.disable_chunked_mm_input
            and not self.need_mamba_block_aligned_split
        )

    def _let_the_oldest_pass(self) -> None:
        """Make one first that has waited too long, or it would wait as long as first ones come."""
        oldest = next(dropwhile(is_first, self.waiting), None)
        if oldest is not None and time.time() - oldest.arrival_time > PATIENCE_S:
            self.waiting.remove_request(oldest)
            oldest.priority = FIRST
            self.waiting.add_request(oldest)

    def _budget(self, first: "list[Request]", half_read: "list[Request]") -> int:
        """The tokens of the next step: answers, first prompts, and a part for the other prompts."""
        answers = [each for each in self.running if not each.is_prefill_chunk]
        if self._held_back:
            return sum(map(unread_tokens, answers + first))
        if half_read:
            # vLLM gives what is half-read, whosever it is, its tokens before what waits.
            first = [each for each in first if each.is_prefill_chunk]
        return sum(map(unread_tokens, answers + first)) + self.max_num_scheduled_tokens // 2

    def _first(self) -> "list[Request]":
        """Those of priority FIRST whose prompts are yet to be read, and can be."""
        half_read = [each for each in self.running if each.is_prefill_chunk and is_first(each)]
        waiting = takewhile(is_first, self.waiting)
        return half_read + [each for each in waiting if each not in self.deferred_waiting]

    def _half_read_of_others(self) -> "list[Request]":
        return [each for each in self.running if each.is_prefill_chunk and not is_first(each)]

    def _adapters_fit(self) -> bool:
        """Whether all that is here may run at once.

        vLLM does not count the adapters of what is held back, and dies of one too many after it.
        """
        if self.lora_config is None:
            return True
        requests = chain(self.running, self.waiting)
        adapters = {each.lora_request.lora_int_id for each in requests if each.lora_request}
        return bool(len(adapters) <= self.lora_config.max_loras)


def is_first(request: "Request") -> bool:
    """Whether its prompt is to be read before others."""
    return bool(request.priority == FIRST)


def unread_tokens(request: "Request") -> int:
    """What vLLM would give the request in a step without limits."""
    known = request.num_tokens_with_spec + request.num_output_placeholders
    return int(known - request.num_computed_tokens)


class FairScheduler(_FairSteps, Scheduler):  # type: ignore[misc]
    """For engines that schedule a step when the one before has ended, as CPUs' do."""


class FairAsyncScheduler(_FairSteps, AsyncScheduler):  # type: ignore[misc]
    """For engines that schedule a step while the one before runs, as GPUs' do."""
