"""What is added to vLLM's worker: mends of vLLM, and what this server asks about its adapters.

Runs in each of vLLM's worker processes (`worker_extension_cls`) and imports nothing of the project
but `cpu_lora` and `engine.vllm`, so that a worker takes no longer to start. Called through
`AsyncLLM.collective_rpc`.
"""

from typing import Any

WORKER_EXTENSION = f"{__name__}.WorkerExtension"
HELD_ADAPTERS = "held_adapters"
GROUP_ADAPTERS = "group_adapters"
MEND_VLLM = "mend_vllm"
"""The methods' names, for collective_rpc."""


class WorkerExtension:
    """Mixed into the worker's class by vllm/v1/worker/worker_base.py."""

    model_runner: Any

    def mend_vllm(self) -> None:
        """Make the changes of `engine.vllm`, once, before the first request."""
        from engine.vllm.cpu_seeds import draw_only_for_read_prompts

        draw_only_for_read_prompts(self.model_runner)

    def held_adapters(self) -> tuple[list[int], list[int]]:
        """The lora_int_ids in the device's slots, and those in the CPU cache; sorted.

        Looking changes neither's order of use. vLLM keeps what is in a slot in the cache as well.
        """
        manager = self.model_runner.lora_manager
        slots = manager._adapter_manager.lora_index_to_id  # noqa: SLF001 - vLLM has no other way
        return sorted(each for each in slots if each is not None), sorted(manager.list_adapters())

    def group_adapters(self) -> None:
        """Have the CPU compute adapter by adapter; a GPU's kernels do so themselves."""
        from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

        from engine.cpu_lora import GroupedPunicaWrapper

        manager = self.model_runner.lora_manager._adapter_manager  # noqa: SLF001 - as above
        for wrapper in manager.punica_wrapper_mapping.values():
            if type(wrapper) is PunicaWrapperCPU:
                wrapper.__class__ = GroupedPunicaWrapper
        # Or the first step would be taken to be grouped if it looked as the last one did.
        manager._last_mapping = None  # noqa: SLF001
