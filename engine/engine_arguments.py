"""A base model's vLLM engine arguments: `1/model.json`, as in NVIDIA's vLLM backend.

Two keys of it are this server's own: `admission`, see `admission_settings`, and `max_step_s`, the
seconds without a step after which an engine counts as dead. Imports of the project
nothing else but the model path's rule and a name, and vllm only to parse.
"""

import json
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from adapter_sync.model_path import resolve_model
from engine.admission_settings import AdmissionSettings
from engine.worker_extension import WORKER_EXTENSION

ADMISSION, MAX_STEP_S = "admission", "max_step_s"
_OURS = frozenset({ADMISSION, MAX_STEP_S})
_DEFAULT_MAX_STEP_S = 60.0


class EngineArgumentsError(ValueError):
    """model.json holds something that vLLM does not take; the message says what."""


def read_engine_arguments(
    version_folder: Path, *, served_model_name: str, models_dir: Path
) -> Namespace:
    """VLLM's server arguments for the base model in Triton's `<base>/1` folder.

    Raises EngineArgumentsError when the file is missing or vLLM would not take it.
    """
    path = version_folder / "model.json"
    settings = _read(path)
    settings["model"] = resolve_model(settings["model"], models_dir)
    settings["served_model_name"] = served_model_name
    # OpenAI tells how much of the prompt came from its cache; vLLM does when it is asked to.
    settings.setdefault("enable_prompt_tokens_details", True)
    if "worker_extension_cls" in settings:
        raise EngineArgumentsError(f"{path}: 'worker_extension_cls' is taken by this server")
    settings["worker_extension_cls"] = WORKER_EXTENSION
    return _parse(list(command_line(settings)), path)


def read_admission(version_folder: Path) -> AdmissionSettings | None:
    """How requests queue for the base model; None when they do not.

    Raises EngineArgumentsError when the file is missing or wrong.
    """
    path = version_folder / "model.json"
    settings = _read(path).get(ADMISSION, {})
    try:
        return None if settings is False else msgspec.convert(settings, AdmissionSettings)
    except msgspec.ValidationError as error:
        raise EngineArgumentsError(f"{path}: '{ADMISSION}' is wrong: {error}") from error


def read_max_step_s(version_folder: Path) -> float:
    """How long a step of the engine may take, in seconds, before the engine counts as dead.

    Raises EngineArgumentsError when the file is missing or wrong.
    """
    path = version_folder / "model.json"
    seconds = _read(path).get(MAX_STEP_S, _DEFAULT_MAX_STEP_S)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
        raise EngineArgumentsError(f"{path}: '{MAX_STEP_S}' must be a number of seconds above 0")
    return float(seconds)


def command_line(settings: Mapping[str, object]) -> Iterator[str]:
    """The settings as the words of `vllm serve`: `--max-loras 8 --no-enable-prefix-caching`."""
    for key, value in settings.items():
        option = key.replace("_", "-")
        if key in _OURS:
            continue
        if value is True:
            yield f"--{option}"
        elif value is False:
            yield f"--no-{option}"
        elif isinstance(value, list):
            yield f"--{option}"
            yield from (_word(item) for item in value)
        elif value is not None:
            yield from (f"--{option}", _word(value))


def _read(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineArgumentsError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("model"), str):
        raise EngineArgumentsError(f"{path} must be a JSON object with a 'model'")
    return settings


def _word(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _parse(words: list[str], path: Path) -> Namespace:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        """vLLM's parser, raising where argparse would end the process."""

        def error(self, message: str) -> None:
            raise EngineArgumentsError(f"{path}: vLLM does not take it: {message}")

    parser = make_arg_parser(Parser())
    # A plain flag has no opposite: to be false is not to be there.
    known = parser._option_string_actions  # noqa: SLF001 - as vLLM's own config file reader does
    given = [
        word
        for word in words
        if not (word.startswith("--no-") and word not in known and f"--{word[5:]}" in known)
    ]
    arguments: Namespace = parser.parse_args(given)
    return arguments
