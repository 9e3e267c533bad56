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
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from engine.admission_settings import ABOUT_S
from engine.priority import FIRST, OTHERS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vllm.config import SchedulerConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


def read_in_turns(config: "SchedulerConfig") -> None:
    """Have the engine use this scheduler, unless it has one of its own: the operator's, or a kind.

    A model of diffusion, say, has.
    """
    if config.scheduler_cls is None:
        kind = FairAsyncScheduler if config.async_scheduling else FairScheduler
        config.scheduler_cls = f"{kind.__module__}.{kind.__qualname__}"
        config.policy = "priority"


class _FairSteps:
    """Mixed into vLLM's schedulers, in front of them."""

    running: "list[Request]"
    waiting: "Iterable[Request]"
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

    def schedule(self, *arguments: Any, **options: Any) -> "SchedulerOutput":
        """Choose what the next step works on."""
        if time.monotonic() >= self._shared_until_s or not self._reads_any_part():
            return super().schedule(*arguments, **options)  # type: ignore[misc]
        budget, active = self.max_num_scheduled_tokens, self.max_num_active_reqs
        held_back = self._hold_back()
        self.max_num_scheduled_tokens = min(budget, self._budget())
        self.max_num_active_reqs -= len(held_back)
        try:
            return super().schedule(*arguments, **options)  # type: ignore[misc]
        finally:
            self.max_num_scheduled_tokens, self.max_num_active_reqs = budget, active
            self.running += held_back

    def _reads_any_part(self) -> bool:
        """Or a prompt could wait forever for room in a smaller step."""
        config = self.scheduler_config
        return (
            config.enable_chunked_prefill
            and not config.disable_chunked_mm_input
            and not self.need_mamba_block_aligned_split
        )

    def _hold_back(self) -> "list[Request]":
        """Take the others' half-read prompts out of the next step, if there are first ones."""
        self._held_back = not self._held_back and bool(self._first())
        if not self._held_back:
            return []
        half_read = [each for each in self.running if each.is_prefill_chunk and not is_first(each)]
        self.running = [each for each in self.running if each not in half_read]
        return half_read

    def _budget(self) -> int:
        """The tokens of the next step: answers, first prompts, and a part for the other prompts."""
        answers = sum(unread_tokens(each) for each in self.running if not each.is_prefill_chunk)
        first = sum(unread_tokens(each) for each in self._first())
        others = 0 if self._held_back else self.max_num_scheduled_tokens // 2
        return answers + first + others

    def _first(self) -> "list[Request]":
        """Those of priority FIRST whose prompts are yet to be read."""
        half_read = [each for each in self.running if each.is_prefill_chunk and is_first(each)]
        return half_read + list(takewhile(is_first, self.waiting))


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
