"""What is added to vLLM's worker: it tells which adapters it holds, and where.

Runs in each of vLLM's worker processes (`worker_extension_cls`) and imports nothing of the project,
so that a worker takes no longer to start. Called through `AsyncLLM.collective_rpc`.
"""

from typing import Any

WORKER_EXTENSION = f"{__name__}.AdapterWorker"
HELD_ADAPTERS = "held_adapters"
"""The method's name, for collective_rpc."""


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
