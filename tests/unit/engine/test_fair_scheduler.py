"""What a step of vLLM's own scheduler works on, with a model that is none."""

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from vllm.config import LoRAConfig, SchedulerConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from engine.admission_settings import ABOUT_S
from engine.fair_scheduler import (
    PATIENCE_S,
    FairAsyncScheduler,
    FairScheduler,
    read_in_turns,
)
from engine.priority import FIRST, OTHERS

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler

STEP, BLOCK, BLOCKS, SEQUENCES = 128, 16, 200, 8
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 2048,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> VllmConfig:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(MODEL))
    made = EngineArgs(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=2048,
        max_num_batched_tokens=STEP,
        max_num_seqs=SEQUENCES,
        block_size=BLOCK,
        enable_prefix_caching=False,
        kv_cache_memory_bytes=1 << 28,
    ).create_engine_config()
    read_in_turns(made.scheduler_config)
    made.cache_config.num_gpu_blocks = BLOCKS
    return made


class Engine:
    """A scheduler, whose steps make a token of each prompt that is read and of each answer."""

    def __init__(self, config: VllmConfig, kind: "type[Scheduler]") -> None:
        spec = FullAttentionSpec(
            block_size=BLOCK, num_kv_heads=4, head_size=16, dtype=torch.float32
        )
        self.scheduler: Scheduler = kind(
            vllm_config=config,
            kv_cache_config=KVCacheConfig(
                num_blocks=BLOCKS,
                kv_cache_tensors=[],
                kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
            ),
            structured_output_manager=StructuredOutputManager(config),
            block_size=BLOCK,
        )

    def ask(
        self,
        name: str,
        tokens: int,
        *,
        priority: int = OTHERS,
        answer: int = 1000,
        adapter: int | None = None,
        waited_s: float = 0,
    ) -> None:
        lora = adapter and LoRARequest(str(adapter), adapter, "/nowhere")
        self.scheduler.add_request(
            Request(
                request_id=name,
                prompt_token_ids=[1] * tokens,
                sampling_params=SamplingParams(max_tokens=answer, ignore_eos=True),
                pooling_params=None,
                priority=priority,
                lora_request=lora or None,
                arrival_time=time.time() - waited_s,
            )
        )

    def step(self) -> dict[str, int]:
        """The tokens that it works on of each request."""
        output = self.scheduler.schedule()
        worked_on: dict[str, int] = output.num_scheduled_tokens
        names = list(worked_on)
        # A prompt that is read to its end has its first token.
        requests = [self.scheduler.requests[name] for name in names]
        sampled = [
            [2] if each.num_computed_tokens >= each.num_prompt_tokens else [] for each in requests
        ]
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
            ),
        )
        return worked_on

    def answering(self, count: int) -> list[str]:
        """So many answers, begun."""
        names = [f"answer {number}" for number in range(count)]
        for name in names:
            self.ask(name, 4)
        assert set(self.step()) == set(names)
        return names


@pytest.fixture(params=[FairScheduler, FairAsyncScheduler])
def engine(config: VllmConfig, request: pytest.FixtureRequest) -> Engine:
    return Engine(config, request.param)


def test_one_tenant_alone_has_whole_steps(engine: Engine) -> None:
    engine.ask("long", 300)
    assert [engine.step() for _ in range(3)] == [{"long": 128}, {"long": 128}, {"long": 44}]


def test_a_first_prompt_is_read_before_one_that_is_half_read(engine: Engine) -> None:
    engine.ask("long", 600)
    engine.step()
    engine.ask("first", 100, priority=FIRST)
    assert engine.step() == {"first": 100}
    assert engine.step() == {"first": 1, "long": 64}


def test_a_first_prompt_is_read_before_those_that_wait(engine: Engine) -> None:
    engine.ask("waits", 100)
    engine.ask("first", 100, priority=FIRST)
    assert engine.step() == {"first": 100}
    assert engine.step() == {"first": 1, "waits": 64}


def test_first_prompts_are_read_in_the_order_of_their_coming(engine: Engine) -> None:
    for name in ("a", "b"):
        engine.ask(name, 100, priority=FIRST)
    assert engine.step() == {"a": 100, "b": 28}


def test_a_prompt_that_takes_more_than_a_step_is_not_read_first(engine: Engine) -> None:
    engine.ask("long", STEP + 1, priority=FIRST)
    assert engine.step() == {"long": 64}
    engine.ask("first", 100, priority=FIRST)
    assert engine.step() == {"first": 100}


def test_answers_are_held_up_by_nobody(engine: Engine) -> None:
    names = engine.answering(6)
    engine.ask("long", 200)
    for number in range(3):
        engine.ask(f"first {number}", 100, priority=FIRST)
        worked_on = engine.step()
        assert {name: worked_on.get(name) for name in names} == dict.fromkeys(names, 1)


def test_a_half_read_prompt_waits_for_first_ones_every_other_step_only(engine: Engine) -> None:
    engine.ask("long", 600)
    engine.step()
    read = []
    for number in range(6):
        engine.ask(f"first {number}", 100, priority=FIRST, answer=1)
        read.append(engine.step().get("long", 0))
    assert read[::2] == [0, 0, 0]
    assert all(0 < tokens <= 64 for tokens in read[1::2])


def test_a_prompt_that_has_waited_for_long_is_read_though_first_ones_come(engine: Engine) -> None:
    for number in range(2):
        engine.ask(f"first {number}", STEP, priority=FIRST, answer=1)
    engine.ask("waits", 10, waited_s=PATIENCE_S / 2)
    engine.ask("waits too long", 10, waited_s=PATIENCE_S + 1)
    worked_on = engine.step()
    assert worked_on["waits too long"] == 10
    assert "waits" not in worked_on


def test_one_whose_prompt_is_read_is_no_more_than_others(engine: Engine) -> None:
    engine.ask("first", 10, priority=FIRST)
    engine.step()
    assert engine.scheduler.requests["first"].priority == OTHERS


def test_no_more_adapters_run_at_once_than_there_are_slots(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.scheduler, "lora_config", LoRAConfig(max_loras=1))
    engine.ask("long", 600, adapter=1)
    engine.step()
    engine.ask("first", 10, priority=FIRST, adapter=2)
    for _ in range(6):
        assert set(engine.step()) == {"long"}


def test_beside_another_tenant_a_step_reads_half_as_much(engine: Engine) -> None:
    engine.ask("first", 10, priority=FIRST, answer=1)
    engine.step()
    engine.ask("a", 100)
    engine.ask("b", 100)
    assert [engine.step() for _ in range(3)] == [
        {"a": 64},
        {"a": 36, "b": 28},
        {"a": 1, "b": 64},
    ]


def test_steps_are_whole_again_when_the_others_have_been_gone_for_a_while(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.ask("first", 10, priority=FIRST, answer=1)
    engine.step()
    later_s = time.monotonic() + ABOUT_S
    monkeypatch.setattr(time, "monotonic", lambda: later_s)
    engine.ask("long", 300)
    assert engine.step() == {"long": 128}


def test_what_is_held_back_keeps_its_place_in_the_engine(engine: Engine) -> None:
    names = engine.answering(SEQUENCES - 1)
    engine.ask("long", 600)
    engine.step()
    engine.ask("first", 10, priority=FIRST)
    # All places are taken, one of them by what is held back.
    assert engine.step() == dict.fromkeys(names, 1)
    assert "long" in engine.step()


@pytest.mark.parametrize("setting", ["enable_chunked_prefill", "disable_chunked_mm_input"])
def test_a_prompt_that_is_read_whole_is_never_cut(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    scheduler_config = engine.scheduler.scheduler_config
    monkeypatch.setattr(scheduler_config, setting, not getattr(scheduler_config, setting))
    engine.ask("first", 10, priority=FIRST, answer=1)
    engine.step()
    engine.ask("whole", 100)
    assert engine.step() == {"whole": 100}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"async_scheduling": False}, FairScheduler),
        ({"async_scheduling": True}, FairAsyncScheduler),
    ],
)
def test_the_engine_finds_it_by_its_name(options: dict[str, bool], kind: type[Any]) -> None:
    config = SchedulerConfig.default_factory(**options)
    read_in_turns(config)
    assert config.get_scheduler_cls() is kind


def test_a_scheduler_of_the_operators_own_is_kept() -> None:
    config = SchedulerConfig.default_factory(scheduler_cls="mine.Scheduler")
    read_in_turns(config)
    assert (config.scheduler_cls, config.policy) == ("mine.Scheduler", "fcfs")
