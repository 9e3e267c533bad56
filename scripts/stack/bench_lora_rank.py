"""What an engine's max_lora_rank costs: requests with an adapter against requests without.

On the CPU an adapter is computed with its rank padded to the figure that the engine was started
with. Each rank gets an engine of its own, with this project's kernels (engine/cpu_lora.py) or
vLLM's own; the ratios are taken within one engine, in one run.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPT_TOKENS = 400
ANSWER_TOKENS = 32
ROUNDS = 3
MEASURED = '{"max_lora_rank"'


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line per rank; 1 when an engine did not start."""
    parser = argparse.ArgumentParser(prog="scripts/bench-lora-rank", description=__doc__)
    parser.add_argument(
        "--ranks", type=int, nargs="+", default=[8, 16, 64], help="default: 8 16 64"
    )
    parser.add_argument("--model", default=str(ROOT / ".runtime/models/smollm2-135m-instruct"))
    parser.add_argument("--adapter", default=str(ROOT / "examples/finance/adapter"))
    parser.add_argument("--vllm", action="store_true", help="with vLLM's own kernels")
    parser.add_argument("--json", action="store_true", help="print one JSON object a rank")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.measure is not None:
        measured = measure(
            arguments.measure, arguments.model, arguments.adapter, grouped=not arguments.vllm
        )
        print(json.dumps(measured))
        return 0
    words_of_all = ["--model", arguments.model, "--adapter", arguments.adapter]
    words_of_all += ["--vllm"] if arguments.vllm else []
    for rank in arguments.ranks:
        words = [sys.executable, "-P", "-m", "stack.bench_lora_rank", "--measure", str(rank)]
        done = subprocess.run([*words, *words_of_all], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            print(done.stderr[-2000:], file=sys.stderr)
            return 1
        # vLLM writes to standard output too.
        (line,) = (each for each in done.stdout.splitlines() if each.startswith(MEASURED))
        print(line if arguments.json else sentence(json.loads(line)), flush=True)
    return 0


def sentence(measured: dict[str, float]) -> str:
    """One rank's figures in words."""
    return (
        f"max_lora_rank {measured['max_lora_rank']:>3.0f}: with an adapter a prompt takes "
        f"{measured['prefill_ratio']:.1f} times as long ({measured['prefill_base_s']:.2f} s "
        f"without), a token {measured['decode_ratio']:.1f} times "
        f"({1000 * measured['decode_base_s']:.0f} ms without)"
    )


def measure(rank: int, model: str, adapter: str, *, grouped: bool) -> dict[str, float]:
    """The best of some rounds, in seconds: a prompt of 400 tokens, and one token of an answer."""
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    from engine.worker_extension import GROUP_ADAPTERS, WORKER_EXTENSION

    engine = LLM(
        model=model,
        dtype="float32",
        max_model_len=2048,
        kv_cache_memory_bytes=1 << 30,
        enforce_eager=True,
        enable_prefix_caching=False,
        enable_lora=True,
        max_loras=8,
        max_lora_rank=rank,
        worker_extension_cls=WORKER_EXTENSION,
    )
    if grouped:
        engine.collective_rpc(GROUP_ADAPTERS)
    lora = LoRARequest(lora_name="measured", lora_int_id=1, lora_path=str(Path(adapter).resolve()))
    timed = {name: timings(engine, request) for name, request in (("base", None), ("lora", lora))}
    return {
        "max_lora_rank": rank,
        "prefill_base_s": timed["base"][0],
        "prefill_ratio": timed["lora"][0] / timed["base"][0],
        "decode_base_s": timed["base"][1],
        "decode_ratio": timed["lora"][1] / timed["base"][1],
    }


def timings(engine: Any, lora: Any) -> tuple[float, float]:
    """Seconds for a prompt, and for one token of an answer, the best of some rounds."""
    from vllm import SamplingParams

    def seconds(prompt: str, tokens: int) -> float:
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        engine.generate([prompt], sampling, lora_request=lora, use_tqdm=False)
        return time.perf_counter() - start

    seconds("warm up", 2)
    prefill_s = min(seconds("word " * PROMPT_TOKENS, 1) for _ in range(ROUNDS))
    decode_s = min(seconds("Once upon a time", ANSWER_TOKENS) for _ in range(ROUNDS))
    return prefill_s, decode_s / ANSWER_TOKENS


if __name__ == "__main__":
    sys.exit(main())
