"""Add a base model to Triton's model repository: its own folder and its companion's."""

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for max_lora_rank: vllm/config/lora.py."""
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
EPILOG = """\
example:
  scripts/add-base-model llama-3.1-70b-instruct --model meta-llama/Llama-3.1-70B-Instruct \\
      --engine-argument tensor_parallel_size=8
  scripts/add-base-model all-minilm-l6-v2 --model sentence-transformers/all-MiniLM-L6-v2 \\
      --no-adapters --engine-argument runner=pooling
"""


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
        default=64,
        help="the largest rank served (default: 64); memory is taken for it at the start",
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
        help="serve it without LoRA, as an embedding model has to be: it takes no adapters and "
        "gets no companion",
    )
    parser.add_argument(
        "--engine-argument",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other vLLM engine argument, VALUE as JSON or a word; may be repeated",
    )
    arguments = parser.parse_args(argv)
    try:
        add(
            arguments.name,
            {
                "model": arguments.model,
                **lora_arguments(arguments),
                **dict(key_and_value(word) for word in arguments.engine_argument),
            },
        )
    except AddError as error:
        print(f"add-base-model: {error}", file=sys.stderr)
        return 1
    return 0


def lora_arguments(arguments: argparse.Namespace) -> dict[str, object]:
    """VLLM's engine arguments for LoRA, none for a base model without adapters."""
    if arguments.no_adapters:
        return {}
    return {
        "enable_lora": True,
        "max_loras": arguments.max_loras,
        "max_lora_rank": arguments.max_lora_rank,
        "max_cpu_loras": arguments.max_cpu_loras or 4 * arguments.max_loras,
    }


class AddError(Exception):
    """The base model can't be added; the message says why."""


def add(name: str, engine_arguments: Mapping[str, object]) -> None:
    """Write the folders, the companion's only for LoRA. Raises AddError, leaving nothing."""
    from adapter_sync.companion_folder import TEMPLATES, VERSION_FOLDER, CompanionFolder
    from adapter_sync.errors import ConfigurationError
    from adapter_sync.lora_map import COMPANION_SUFFIX
    from adapter_sync.settings import load_settings

    try:
        settings = load_settings()
    except ConfigurationError as error:
        raise AddError(str(error)) from None
    target = settings.model_repository / name
    if NAME.fullmatch(name) is None or name.endswith(COMPANION_SUFFIX):
        raise AddError(
            f"'{name}' can't be a base model's name: use up to 128 letters, digits, '.', '_' and "
            f"'-', with a letter or digit at both ends, and not '{COMPANION_SUFFIX}' at the end"
        )
    if target.exists():
        raise AddError(f"there is a base model '{name}' already, in {target}")
    model = str(engine_arguments["model"])
    if model.startswith((".", "/", "~")):
        engine_arguments = {**engine_arguments, "model": str(existing_folder(model))}
    elif Path(model).is_dir() and not (settings.lora_models_dir / model).is_dir():
        # The engine runs in another folder, and would take it for a Hugging Face id.
        engine_arguments = {**engine_arguments, "model": str(existing_folder(model))}
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
    url = f"http://{settings.triton_host}:{settings.triton_http_port}"
    print(f"Added {target}.")
    print("A running Triton in poll mode finds it; in explicit mode tell it:")
    print(f"  curl -X POST {url}/v2/repository/models/{name}/load")


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
