"""Seeded requests on the CPU whose prompts are read in several steps.

vLLM samples a token in every step, also for a request of whose prompt the step has read only a
part. It discards that token, and takes the request's random generator back by what the token drew
(`_bookkeeping_sync` of vllm/v1/worker/gpu_model_runner.py). Only CUDA's generators can be taken
back: with torch's CPU generators vLLM 0.32 raises RuntimeError, and the engine is dead for
everybody. Here such a request has no generator of its own until its prompt has been read, so there
is nothing to take back, and its answer does not depend on the number of steps.

Runs in vLLM's worker; imports nothing of the project.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def draw_only_for_read_prompts(runner: Any) -> None:
    """Have a model runner sample discarded tokens without their requests' generators.

    Changes nothing but the CPU's runner.
    """
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    if isinstance(runner, CPUModelRunner):
        runner.sample_tokens = _without_discarded(runner, runner.sample_tokens)


def _without_discarded(runner: Any, sample_tokens: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def sample_tokens_of_read_prompts(grammar_output: Any) -> Any:
        with _kept_aside(runner):
            return sample_tokens(grammar_output)

    return sample_tokens_of_read_prompts


@contextmanager
def _kept_aside(runner: Any) -> Iterator[None]:
    """The generators of requests whose tokens this step discards, by their rows in the batch.

    vLLM moves rows between steps only, so each goes back to where it was.
    """
    generators = runner.input_batch.generators
    discarded = runner.discard_request_mask.np
    aside = {row: generators.pop(row) for row in list(generators) if discarded[row]}
    try:
        yield
    finally:
        generators.update(aside)
