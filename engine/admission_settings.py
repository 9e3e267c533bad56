"""What an operator may say of the queue before the engine: `admission` in `1/model.json`.

Imports neither vllm nor Triton.
"""

import sys
from typing import Annotated

import msgspec

from engine.fair_queue import Limits

_Count = Annotated[int, msgspec.Meta(ge=1)]
ABOUT_S = 60.0
"""How long after its last request a tenant still counts as about, so that room is left for it."""


class AdmissionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`max_running_shared` is an eighth less than vLLM's max_num_seqs when it is not given.

    `max_prompt_tokens_shared` is then max_num_batched_tokens: what a step reads.
    """

    max_running_shared: _Count | None = None
    max_prompt_tokens_shared: _Count | None = None
    max_waiting: _Count = 512
    max_wait_s: Annotated[float, msgspec.Meta(gt=0)] = 100
    turn_s: Annotated[float, msgspec.Meta(ge=0)] = 1


def limits_of(
    settings: AdmissionSettings, *, max_num_seqs: int, max_num_batched_tokens: int, max_loras: int
) -> Limits:
    """The limits for an engine of that size."""
    shared = settings.max_running_shared or _but_an_eighth(max_num_seqs)
    prompt_tokens = settings.max_prompt_tokens_shared or max_num_batched_tokens
    return Limits(
        max_running=max_num_seqs,
        max_running_shared=min(shared, max_num_seqs),
        # Two steps' worth, so that the next one finds prompts when one ends.
        max_prompt_tokens=2 * prompt_tokens,
        max_prompt_tokens_shared=prompt_tokens,
        max_adapters=max_loras,
        max_adapters_shared=_but_an_eighth(max_loras),
        max_waiting=settings.max_waiting,
        turn_s=settings.turn_s,
        about_s=ABOUT_S,
    )


def no_limits() -> Limits:
    """Those of no queue: everything enters at once."""
    return Limits(
        max_running=sys.maxsize,
        max_running_shared=sys.maxsize,
        max_prompt_tokens=sys.maxsize,
        max_prompt_tokens_shared=sys.maxsize,
        max_adapters=sys.maxsize,
        max_adapters_shared=sys.maxsize,
        max_waiting=sys.maxsize,
        turn_s=0,
        about_s=0,
    )


def _but_an_eighth(count: int) -> int:
    """An eighth, if there is one, is left for those that have nothing."""
    return count - count // 8
