"""What is added to vLLM's worker: it tells which adapters it holds, and keeps them to their own.

Runs in each of vLLM's worker processes (`worker_extension_cls`) and imports nothing of the project,
so that a worker takes no longer to start. Called through `AsyncLLM.collective_rpc`.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

WORKER_EXTENSION = f"{__name__}.AdapterWorker"
HELD_ADAPTERS = "held_adapters"
SPARE_BASE_MODEL = "spare_base_model"
"""The methods' names, for collective_rpc."""

Shrink = Callable[..., None]


class AdapterWorker:
    """Mixed into the worker's class by vllm/v1/worker/worker_base.py."""

    model_runner: Any

    def held_adapters(self) -> tuple[list[int], list[int]]:
        """The lora_int_ids in the device's slots, and those in the CPU cache; sorted.

        Looking changes neither's order of use. vLLM keeps what is in a slot in the cache as well.
        """
        manager = self.model_runner.lora_manager
        slots = manager._adapter_manager.lora_index_to_id  # noqa: SLF001 - vLLM has no other way
        return sorted(each for each in slots if each is not None), sorted(manager.list_adapters())

    def spare_base_model(self) -> None:
        """Have the CPU's kernels leave out the tokens of requests without an adapter.

        vLLM marks them with the index -1, and its CPU kernels take that for the last slot: beside
        requests of adapters the base model answers with the weights of whatever adapter is in
        there (https://github.com/vllm-project/vllm/pull/48421). Its GPU kernels leave them out.
        """
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu

        # The one for prompts calls the one in its own module. The other half of an adapter is
        # applied to what these leave, and nothing times anything is nothing.
        lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = without_base_model(lora_ops.bgmv_shrink)


def without_base_model(bgmv_shrink: Shrink) -> Shrink:
    """The kernel `output = scaling * inputs @ A`, 0 in the rows whose index is negative.

    inputs (tokens, in), lora_a (slots, 1, rank, in), output (tokens, rank), indices (tokens).
    """

    @wraps(bgmv_shrink)
    def shrink(inputs: Any, lora_a: Any, output: Any, indices: Any, scaling: float = 1.0) -> None:
        bgmv_shrink(inputs, lora_a, output, indices, scaling)
        output.masked_fill_((indices < 0).unsqueeze(1), 0)

    return shrink
