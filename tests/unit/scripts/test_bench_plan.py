"""In which order scripts/bench measures, and what its words change."""

from dataclasses import replace

import pytest
from stack.bench.__main__ import fault_of, main, parser, plan_of
from stack.bench.scenarios import FULL, HOT_LOAD, QUICK, READY_TOKENS

PLAN = replace(FULL, servers=("ours", "vllm"), scenarios=("base",), streams=(1, 8), rounds=2)


def test_the_servers_take_turns_under_each_load_and_in_beginning() -> None:
    assert [(step.streams, step.server) for step in PLAN.steps()] == [
        (1, "ours"),
        (1, "vllm"),
        (8, "vllm"),
        (8, "ours"),
    ] * 2


def test_no_two_runs_ask_the_same() -> None:
    seeds = [step.seed for step in FULL.steps()]
    assert len(set(seeds)) == len(seeds)


def test_a_run_has_enough_requests_for_its_streams() -> None:
    for step in FULL.steps():
        assert step.requests >= max(2 * step.streams, FULL.least_requests)


def test_words_take_the_place_of_the_plans_own() -> None:
    words = ["--quick", "--servers", "vllm", "--streams", "4", "--rounds", "2", "--no-hot-load"]
    assert plan_of(parser().parse_args(words)) == replace(
        QUICK, servers=["vllm"], streams=[4], rounds=2, hot_load_mb=()
    )


def test_ready_tokens_come_at_the_rate_that_is_asked_for() -> None:
    assert plan_of(parser().parse_args(["--ready-tokens", "5"])) == replace(
        READY_TOKENS, ready_tokens_per_s=5.0
    )
    assert plan_of(parser().parse_args(["--ready-tokens"])) == READY_TOKENS
    assert plan_of(parser().parse_args([])) == FULL


def test_hot_loads_alone_have_the_sizes_that_are_asked_for() -> None:
    assert plan_of(parser().parse_args(["--hot-load"])) == HOT_LOAD
    words = ["--hot-load", "1", "50", "--rounds", "1"]
    assert plan_of(parser().parse_args(words)) == replace(HOT_LOAD, hot_load_mb=[1, 50], rounds=1)


@pytest.mark.parametrize(
    "words", [["0"], ["--servers", "ours", "vllm"], ["--scenarios", "base", "eight"]]
)
def test_ready_tokens_have_no_other_servers_nor_adapters(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--ready-tokens", *words])
    assert ended.value.code == 2
    assert "--ready-tokens: " in capsys.readouterr().err


def test_the_plans_can_be_done() -> None:
    assert [fault_of(plan) for plan in (FULL, QUICK, HOT_LOAD, READY_TOKENS)] == [None] * 4
