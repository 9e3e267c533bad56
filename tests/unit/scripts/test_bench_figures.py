"""From the load client's result file and the processes' times to the figures of scripts/bench."""

import pytest
from stack.bench.client import Load, RequestsFailedError, Target, arguments, read_result
from stack.bench.figures import Cost, Percentiles, Run, Sample, percentiles_ms, run_of
from stack.bench.processes import Used, cost_between, name_of

from tests.stack_process import ROOT

RESULT = {
    "duration": 2.0,
    "failed": 0,
    "total_output_tokens": 6,
    "ttfts": [0.1, 0.2],
    "itls": [[0.01, 0.02], [0.03, 0.04]],
    "errors": ["", ""],
    "generated_texts": ["what nobody reads", ""],
}


def test_percentiles_lie_between_two_values_by_the_distance_to_each() -> None:
    values = [n / 1000 for n in range(101)]
    assert percentiles_ms(values) == Percentiles(p50=50.0, p99=99.0)
    assert percentiles_ms([0.001, 0.002]) == Percentiles(p50=1.5, p99=1.99)


def test_there_are_no_percentiles_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        percentiles_ms([])


def test_the_gaps_of_all_requests_are_read_into_one_list() -> None:
    assert read_result(RESULT) == Sample(
        seconds=2.0, output_tokens=6, ttfts_s=[0.1, 0.2], itls_s=[0.01, 0.02, 0.03, 0.04]
    )


def test_a_run_with_a_failed_request_is_none() -> None:
    failed = {**RESULT, "failed": 1, "errors": ["", "503 Service Unavailable"]}
    with pytest.raises(RequestsFailedError, match="1 of 2 requests failed: 503"):
        read_result(failed)


def test_rounds_are_put_together_by_their_tokens_and_seconds() -> None:
    rounds = [
        (
            Sample(seconds=1, output_tokens=100, ttfts_s=[0.1], itls_s=[0.01]),
            Cost(cpu_s={"gateway": 0.01}, rss_bytes={"gateway": 100_000_000}),
        ),
        (
            Sample(seconds=3, output_tokens=100, ttfts_s=[0.3], itls_s=[0.03]),
            Cost(cpu_s={"gateway": 0.03, "stub": 0.1}, rss_bytes={"gateway": 120_000_000}),
        ),
    ]
    assert run_of("ours", "base", 1, rounds) == Run(
        server="ours",
        scenario="base",
        streams=1,
        output_tokens_per_s=50.0,
        ttft_ms=Percentiles(p50=200.0, p99=298.0),
        itl_ms=Percentiles(p50=20.0, p99=29.8),
        cpu_ms_per_1k_tokens={"gateway": 200.0, "stub": 500.0},
        rss_mb={"gateway": 120.0},
    )


def test_a_process_costs_what_it_used_since_and_the_same_names_are_added_up() -> None:
    before = Used(names={1: "worker", 2: "stub"}, cpu_s={1: 5.0, 2: 1.0}, rss_bytes={1: 10, 2: 1})
    after = Used(
        names={1: "worker", 3: "worker"}, cpu_s={1: 5.5, 3: 0.25}, rss_bytes={1: 20, 3: 30}
    )
    assert cost_between(before, after) == Cost(cpu_s={"worker": 0.75}, rss_bytes={"worker": 50})


@pytest.mark.parametrize(
    ("command_line", "name"),
    [
        ("/venv/bin/python -P -m gateway", "gateway"),
        ("/venv/bin/python -P -m adapter_sync --control=explicit", "adapter_sync"),
        ("/triton/bin/tritonserver --model-repository=/data", "tritonserver"),
        ("/t/triton_python_backend_stub /models/llama/1/model.py lora_1_", "stub"),
        ("/t/triton_python_backend_stub /models/llama-adapters/1/model.py lora_1_", "companion"),
        ("/t/triton_python_backend_stub /models/llama-adapter-files/1/model.py l_2_", "companion"),
        ("VLLM::EngineCore", "engine core"),
        ("python -c from multiprocessing.spawn import spawn_main; spawn_main(5)", "gateway"),
        ("VLLM::Worker", "worker"),
        ("python -m vllm.entrypoints.openai.api_server --model /m", "api server"),
        ("/venv/bin/python /runtime/litellm/bin/litellm --config c", "litellm"),
        ("python -m supervisor.supervisord -c /data/supervisord.conf", "others"),
    ],
)
def test_processes_are_known_by_their_command_lines(command_line: str, name: str) -> None:
    assert name_of(command_line.split()) == name


def test_each_request_has_all_its_tokens_and_the_models_take_turns() -> None:
    words = arguments(
        Target(backend="openai-chat", base_url="http://h:1", endpoint="/v1/x", key="sk-1"),
        Load(models=["a", "b"], streams=8, prompts=16, input_tokens=3, output_tokens=4, seed=5),
        tokenizer=ROOT / "tokenizer",
        result=ROOT / "out" / "result.json",
    )
    line = " ".join(words)
    assert "--lora-modules a b" in line
    assert "--lora-assignment round-robin" in line
    assert "--ignore-eos" in words
    assert "--max-concurrency 8" in line
    assert words[words.index("--header") + 1] == "Authorization=Bearer sk-1"
