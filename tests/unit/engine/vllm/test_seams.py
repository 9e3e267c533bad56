"""What the modules of engine/vllm take for granted of vLLM: a new version may change it."""

import inspect

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.executor.multiproc_executor import WorkerProc
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def test_a_discarded_token_takes_its_generator_back_by_an_offset() -> None:
    source = inspect.getsource(GPUModelRunner._bookkeeping_sync)
    assert "gen.set_offset(gen.get_offset() - 4)" in source
    assert "self.input_batch.generators.get(int(i))" in source


def test_the_cpu_runner_samples_in_a_call_of_its_own_after_the_mask_is_made() -> None:
    assert issubclass(CPUModelRunner, GPUModelRunner)
    assert list(inspect.signature(GPUModelRunner.sample_tokens).parameters) == [
        "self",
        "grammar_output",
    ]
    assert "self._bookkeeping_sync(" in inspect.getsource(GPUModelRunner.sample_tokens)
    assert "discard_request_mask" in inspect.getsource(GPUModelRunner._prepare_inputs)


def test_a_request_is_registered_before_it_is_sent() -> None:
    parameters = list(inspect.signature(AsyncLLM._add_request).parameters)
    assert parameters == ["self", "request", "prompt", "parent_req", "index", "queue"]
    source = inspect.getsource(AsyncLLM._add_request)
    registered = source.index("self.output_processor.add_request(")
    assert registered < source.index("await self.engine_core.add_request_async(")
    assert "internal" in inspect.signature(AsyncLLM.abort).parameters


def test_the_processes_begin_in_static_functions_that_are_found_by_their_classes() -> None:
    assert isinstance(inspect.getattr_static(EngineCoreProc, "run_engine_core"), staticmethod)
    assert isinstance(inspect.getattr_static(WorkerProc, "worker_main"), staticmethod)
