"""Add a base model to Triton's model repository: its own folder and its companion's.

A running server takes it in by itself; this waits until it serves, or says why it can't.
"""

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapter_sync.settings import Settings
    from adapter_sync.triton_repository import TritonRepository

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for max_lora_rank: vllm/config/lora.py."""
CPU_ARGUMENTS: Mapping[str, object] = MappingProxyType(
    {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 1 << 30}
)
"""What vLLM's CPU build is given: as exact and as quick as it gets, without a compiler, and 1 GiB
of memory instead of all that is free, which other engines need."""
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
EPILOG = """\
example:
  scripts/add-base-model llama-3.1-70b-instruct --model meta-llama/Llama-3.1-70B-Instruct \\
      --engine-argument tensor_parallel_size=8
  scripts/add-base-model all-minilm-l6-v2 --model sentence-transformers/all-MiniLM-L6-v2

While the server runs, the others serve on and nothing is restarted. To remove a base model, move
its folder out of MODEL_REPOSITORY.
"""
LOOK_PERIOD_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folders; 1 with a message when they can't be."""
    parser = argparse.ArgumentParser(
        prog="scripts/add-base-model",
        description="Add a base model to MODEL_REPOSITORY: a Triton model with one vLLM engine, "
        "and the companion that holds its adapters.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="what clients put into `model`")
    parser.add_argument(
        "--model",
        required=True,
        metavar="PATH_OR_HF_ID",
        help="a Hugging Face folder, or a model id that vLLM is to fetch",
    )
    parser.add_argument(
        "--max-lora-rank",
        type=int,
        choices=LORA_RANKS,
        help="the largest rank served (default: 64, on the CPU 16); memory is taken for it at the "
        "start",
    )
    parser.add_argument(
        "--max-loras",
        type=int,
        default=8,
        help="adapters in one batch, and in the accelerator's memory (default: 8)",
    )
    parser.add_argument(
        "--max-cpu-loras",
        type=int,
        help="adapters kept in the host's memory (default: 4 times --max-loras)",
    )
    parser.add_argument(
        "--no-adapters",
        action="store_true",
        help="serve it without LoRA: it takes no adapters and gets no companion, as it is without "
        "this option for a model whose files say that it makes embeddings or scores",
    )
    parser.add_argument(
        "--no-wait",
        action="store_true",
        help="do not wait until a running server serves it",
    )
    parser.add_argument(
        "--engine-argument",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other vLLM engine argument, VALUE as JSON or a word; may be repeated; "
        "`admission` is the queue before the engine: docs/limits-and-usage.md",
    )
    arguments = parser.parse_args(argv)
    try:
        settings = checked_settings()
        check_name(arguments.name, settings)
        add(arguments.name, engine_arguments_of(arguments, settings), settings)
        if not arguments.no_wait:
            wait_until_served(arguments.name, settings)
    except AddError as error:
        print(f"add-base-model: {error}", file=sys.stderr)
        return 1
    return 0


def checked_settings() -> "Settings":
    """The installation's settings. Raises AddError."""
    from adapter_sync.errors import ConfigurationError
    from adapter_sync.settings import load_settings

    try:
        return load_settings()
    except ConfigurationError as error:
        raise AddError(str(error)) from None


def engine_arguments_of(
    arguments: argparse.Namespace, settings: "Settings"
) -> Mapping[str, object]:
    """VLLM's engine arguments: without LoRA for what makes embeddings. Raises AddError."""
    given = dict(key_and_value(word) for word in arguments.engine_argument)
    model = written_model(arguments.model, settings)
    on_cpu = version("torch").endswith("+cpu")
    common = {"model": model, **(CPU_ARGUMENTS if on_cpu else {})}
    if arguments.no_adapters:
        return {**common, **given}
    if "runner" not in given and makes_embeddings(model, given.get("revision"), settings):
        print(f"{model} makes embeddings or scores: it takes no adapters.")
        return {**common, "runner": "pooling", **given}
    lora = {
        "enable_lora": True,
        "max_loras": arguments.max_loras,
        "max_lora_rank": arguments.max_lora_rank or (16 if on_cpu else 64),
        "max_cpu_loras": arguments.max_cpu_loras or 4 * arguments.max_loras,
    }
    return {**common, **lora, **given}


def written_model(model: str, settings: "Settings") -> str:
    """The model as the engine, which runs in another folder, will find it. Raises AddError."""
    is_path = model.startswith((".", "/", "~"))
    if is_path or (Path(model).is_dir() and not (settings.lora_models_dir / model).is_dir()):
        return str(existing_folder(model))
    return model


def makes_embeddings(model: str, revision: object, settings: "Settings") -> bool:
    """Whether the model's own files say so; one that can't be read is taken to generate text."""
    from adapter_sync.base_models import is_embedding_model, is_embedding_model_on_hub
    from adapter_sync.errors import ConfigurationError
    from adapter_sync.model_path import resolve_model

    found = resolve_model(model, settings.lora_models_dir)
    try:
        if Path(found).is_dir():
            return is_embedding_model(Path(found))
        return is_embedding_model_on_hub(found, None if revision is None else str(revision))
    except ConfigurationError as error:
        print(
            f"add-base-model: taken to generate text and to take adapters: {error} If it makes "
            "embeddings, remove it and add it with --no-adapters.",
            file=sys.stderr,
        )
        return False


class AddError(Exception):
    """The base model can't be added; the message says why."""


def check_name(name: str, settings: "Settings") -> None:
    """Raise AddError when it can't name a base model, or names one."""
    from adapter_sync.lora_map import WRITTEN_SUFFIXES

    target = settings.model_repository / name
    if NAME.fullmatch(name) is None or name.endswith(WRITTEN_SUFFIXES):
        raise AddError(
            f"'{name}' can't be a base model's name: use up to 128 letters, digits, '.', '_' and "
            f"'-', with a letter or digit at both ends, and neither "
            f"{' nor '.join(map(repr, WRITTEN_SUFFIXES))} at the end"
        )
    if target.exists():
        raise AddError(f"there is a base model '{name}' already, in {target}")


def add(name: str, engine_arguments: Mapping[str, object], settings: "Settings") -> None:
    """Write the folders, the companion's only for LoRA. Raises AddError, leaving nothing."""
    from adapter_sync.companion_folder import TEMPLATES, CompanionFolder
    from adapter_sync.errors import ConfigurationError
    from adapter_sync.lora_map import VERSION_FOLDER

    target = settings.model_repository / name
    settings.model_repository.mkdir(parents=True, exist_ok=True)
    settings.staging_folder.mkdir(parents=True, exist_ok=True)
    companion = CompanionFolder(
        repository=settings.model_repository, base_model=name, staging=settings.staging_folder
    )
    if engine_arguments.get("enable_lora"):
        try:
            companion.create()
        except ConfigurationError as error:
            raise AddError(str(error)) from None
    with tempfile.TemporaryDirectory(dir=settings.staging_folder) as stage:
        tree = shutil.copytree(TEMPLATES / "base", Path(stage) / name)
        model_json = tree / VERSION_FOLDER / "model.json"
        model_json.write_text(json.dumps(engine_arguments, indent=2) + "\n", encoding="utf-8")
        tree.rename(target)
    print(f"Added {target}.")


def wait_until_served(name: str, settings: "Settings") -> None:
    """Wait while a running Triton starts its engine. Raises AddError with Triton's words."""
    from adapter_sync.errors import TritonUnavailableError
    from adapter_sync.triton_repository import GrpcRepository

    triton = GrpcRepository.of(settings)
    try:
        if name not in triton.states():
            raise AddError(
                f"the Triton on TRITON_GRPC_PORT {settings.triton_grpc_port} serves another "
                "MODEL_REPOSITORY"
            )
        print("The server runs: waiting until its engine has started.", flush=True)
        outcome = _outcome(name, triton)
    except TritonUnavailableError:
        print("A server that runs elsewhere takes it in by itself, this one at its next start.")
        return
    if outcome:
        raise AddError(
            f"'{name}' can't be served: {outcome}\nMend "
            f"{settings.model_repository / name / '1' / 'model.json'}, and it is loaded anew, or "
            "remove the folder."
        )
    print(f"'{name}' serves.")


def _outcome(name: str, triton: "TritonRepository") -> str:
    """Why Triton could not load it, "" when it serves. Raises TritonUnavailableError."""
    before = triton.states()[name]
    while True:
        told = triton.states()[name]
        if told.state == "READY":
            return ""
        # Of one that came back after a failure, Triton still tells that one's words.
        if told.state == "UNAVAILABLE" and told != before:
            return told.reason
        if told.state == "LOADING":
            before = told
        time.sleep(LOOK_PERIOD_S)


def existing_folder(model: str) -> Path:
    """An absolute path. Raises AddError when there is no model's config.json."""
    folder = Path(model).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise AddError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    return folder


def key_and_value(word: str) -> tuple[str, object]:
    """A KEY=VALUE word, its value as JSON if it is. Raises AddError."""
    key, separator, value = word.partition("=")
    if not separator or not key:
        raise AddError(f"--engine-argument '{word}' is not KEY=VALUE")
    try:
        return key.replace("-", "_"), json.loads(value)
    except ValueError:
        return key.replace("-", "_"), value


if __name__ == "__main__":
    sys.exit(main())
