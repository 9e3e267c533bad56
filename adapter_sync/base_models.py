"""Reads the base models out of Triton's model repository: their limits and their tensors' shapes.

Reads headers only, never weights; imports neither vllm nor torch.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx2
import pydantic
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)
from safetensors import SafetensorError, safe_open

from adapter_sync.errors import ConfigurationError
from adapter_sync.model_kind import CONFIG_FILE, MODULES_FILE, makes_embeddings
from adapter_sync.model_path import resolve_model
from adapter_sync.record import BaseModel
from adapter_sync.validation.linear_layers import linear_layers

ENGINE_ARGUMENTS_FILE = Path("1", "model.json")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_INDEX_FILE = "model.safetensors.index.json"
_SENTENCE_CONFIG_FILES = "sentence_*_config.json"
_SINGLE_FILE = "model.safetensors"
_NEEDED_FILES = ["*.json", "*.safetensors"]
_DEFAULT_MAX_LORA_RANK = 16  # vLLM's own
# Values of vLLM's `convert`, and of `task`, its older name: they make embeddings or scores.
_POOLING = frozenset({"classify", "embed", "embedding", "reward", "score"})
_HUB_ERRORS = (
    OSError,
    ValueError,
    httpx2.HTTPError,  # huggingface_hub's HTTP client, whose connection errors it lets through
    EntryNotFoundError,
    NotASafetensorsRepoError,
    SafetensorsParsingError,
)
Shapes = Mapping[str, tuple[int, ...]]


class _EngineArguments(pydantic.BaseModel):
    """The part of 1/model.json that says which adapters fit, if any; the rest is the engine's."""

    model_config = pydantic.ConfigDict(extra="ignore", frozen=True, strict=True)

    model: str = pydantic.Field(min_length=1)
    revision: str | None = None
    enable_lora: bool = False
    runner: str | None = None
    convert: str | None = None
    task: str | None = None
    max_lora_rank: int = pydantic.Field(default=_DEFAULT_MAX_LORA_RANK, ge=1)
    max_model_len: int | None = pydantic.Field(default=None, ge=1)

    @property
    def may_take_adapters(self) -> bool:
        """Whether vLLM serves it with LoRA, to generate text; the model itself may do neither."""
        embeds = self.convert in _POOLING or self.task in _POOLING
        return self.enable_lora and self.runner != "pooling" and not embeds


def base_model_folders(repository: Path) -> list[Path]:
    """The base models' folders in Triton's model repository, sorted: those with 1/model.json."""
    return sorted(file.parent.parent for file in repository.glob(f"[!.]*/{ENGINE_ARGUMENTS_FILE}"))


def read_base_model(folder: Path, *, models_dir: Path) -> BaseModel:
    """Read the base model in `<model_repository>/<name>`.

    A model that is neither a folder nor complete in the Hugging Face cache costs a few requests to
    the hub. Of one that takes no adapters only the config is read, whatever its weights are.

    Raises:
        ConfigurationError: its files are missing or wrong; the message says what to do.

    """
    if _NAME.fullmatch(folder.name) is None:
        raise ConfigurationError(
            f"{folder}: '{folder.name}' can't name a base model. Rename the folder: use letters, "
            "digits, '.', '_' and '-'."
        )
    arguments = _engine_arguments(folder / ENGINE_ARGUMENTS_FILE)
    model = resolve_model(arguments.model, models_dir)
    local = _local_folder(model, arguments)
    takes_adapters = arguments.may_take_adapters and not (
        local is not None and arguments.runner != "generate" and is_embedding_model(local)
    )
    shapes = _shapes(local, model, arguments) if takes_adapters else {}
    config = _hub_config(model, arguments) if local is None else _folder_config(local)
    return BaseModel(
        name=folder.name,
        max_lora_rank=arguments.max_lora_rank,
        max_model_len=arguments.max_model_len or _max_positions(config, model, folder),
        tensor_shapes=shapes,
        takes_adapters=takes_adapters,
    )


def is_embedding_model(folder: Path) -> bool:
    """Whether the model in a Hugging Face folder makes embeddings or scores, by its own files.

    Raises ConfigurationError when one of them is no JSON.
    """
    modules = folder / MODULES_FILE
    return makes_embeddings(
        _folder_config(folder), _json_array(modules) if modules.is_file() else []
    )


def is_embedding_model_on_hub(model: str, revision: str | None) -> bool:
    """The same of a Hugging Face model: two small files are fetched. Raises ConfigurationError."""
    try:
        config = HfApi().hf_hub_download(model, CONFIG_FILE, revision=revision)
        try:
            modules = HfApi().hf_hub_download(model, MODULES_FILE, revision=revision)
        except EntryNotFoundError:
            return makes_embeddings(_json_object(Path(config)))
    except _HUB_ERRORS as error:
        raise _hub_failure(model, error) from error
    return makes_embeddings(_json_object(Path(config)), _json_array(Path(modules)))


def _engine_arguments(path: Path) -> _EngineArguments:
    try:
        return _EngineArguments.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}.") from error
    except pydantic.ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the file'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ConfigurationError(
            f"{path} is not a JSON object of vLLM's engine arguments: {faults}."
        ) from error


def _local_folder(model: str, arguments: _EngineArguments) -> Path | None:
    """The model's folder, or its copy in the Hugging Face cache when it has all that is read."""
    if Path(model).is_dir():
        return Path(model)
    try:
        cached = Path(
            snapshot_download(
                model,
                revision=arguments.revision,
                allow_patterns=_NEEDED_FILES,
                local_files_only=True,
            )
        )
    except LocalEntryNotFoundError:
        return None
    except ValueError as error:
        raise ConfigurationError(
            f"There is no folder '{model}', and it is not a Hugging Face id either: {error}. Mend "
            "'model' in 1/model.json."
        ) from error
    if not arguments.may_take_adapters:
        return cached if (cached / CONFIG_FILE).is_file() else None
    # The engine may be downloading it just now.
    complete = all(file.is_file() for file in _weight_files(cached))
    return cached if complete and _weight_files(cached) else None


def _weight_files(folder: Path) -> list[Path]:
    """The weights as transformers and vLLM choose them, whatever other formats lie beside them."""
    index = folder / _INDEX_FILE
    if index.is_file():
        weight_map = _json_object(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ConfigurationError(f"{index} has no 'weight_map'. Download the model again.")
        return sorted({folder / str(name) for name in weight_map.values()})
    single = folder / _SINGLE_FILE
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def _shapes(local: Path | None, model: str, arguments: _EngineArguments) -> Shapes:
    shapes = _hub_shapes(model, arguments.revision) if local is None else _folder_shapes(local)
    _check_shapes(shapes, model)
    return shapes


def _folder_shapes(folder: Path) -> Shapes:
    files = _weight_files(folder)
    if not files:
        raise ConfigurationError(
            f"{folder} has no *.safetensors: adapters are checked against their shapes. Save the "
            "model with transformers' save_pretrained."
        )
    return dict(entry for file in files for entry in _file_shapes(file))


def _file_shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, tuple(file.get_slice(name).get_shape())
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(
            f"{path} can't be read as safetensors: {error}. Download the model again."
        ) from error


def _folder_config(folder: Path) -> Mapping[str, object]:
    """The model's config, with the length that sentence-transformers, and so vLLM, keeps to."""
    config = folder / CONFIG_FILE
    document = _json_object(config) if config.is_file() else {}
    for file in sorted(folder.glob(_SENTENCE_CONFIG_FILES)):
        length = _json_object(file).get("max_seq_length")
        if length is not None:
            return {**document, "max_position_embeddings": length}
    return document


def _hub_shapes(model: str, revision: str | None) -> Shapes:
    try:
        metadata = HfApi().get_safetensors_metadata(model, revision=revision)
    except _HUB_ERRORS as error:
        raise _hub_failure(model, error) from error
    return {
        name: tuple(tensor.shape)
        for file in metadata.files_metadata.values()
        for name, tensor in file.tensors.items()
    }


def _hub_config(model: str, arguments: _EngineArguments) -> Mapping[str, object]:
    if arguments.max_model_len is not None:
        return {}
    try:
        path = HfApi().hf_hub_download(model, CONFIG_FILE, revision=arguments.revision)
    except _HUB_ERRORS as error:
        raise _hub_failure(model, error) from error
    return _json_object(Path(path))


def _hub_failure(model: str, error: Exception) -> ConfigurationError:
    reason = " ".join(str(error).split())
    return ConfigurationError(
        f"The Hugging Face model '{model}' can't be read ({reason}). Mend 'model' in "
        "1/model.json (a folder or a Hugging Face id), set HF_TOKEN for a gated model, or put the "
        "model's folder on this machine."
    )


def _json_object(path: Path) -> Mapping[str, object]:
    document = _json(path)
    if not isinstance(document, dict):
        raise ConfigurationError(f"{path} is not a JSON object.")
    return document


def _json_array(path: Path) -> Sequence[object]:
    document = _json(path)
    if not isinstance(document, list):
        raise ConfigurationError(f"{path} is not a JSON array.")
    return document


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} can't be read as JSON: {error}.") from error


def _check_shapes(shapes: Shapes, model: str) -> None:
    packed = any(name.endswith(".weight.absmax") for name in shapes)
    if packed or not linear_layers(shapes):
        raise ConfigurationError(
            f"The weights of '{model}' don't show the shapes of its linear layers, probably "
            "because they are quantised into packed integers (GPTQ, AWQ, bitsandbytes): adapters "
            "can't be checked against them. Serve the model unquantised or in FP8."
        )


def _max_positions(config: Mapping[str, object], model: str, folder: Path) -> int:
    text_config = config.get("text_config")
    for part in (config, text_config if isinstance(text_config, dict) else {}):
        positions = part.get("max_position_embeddings")
        if isinstance(positions, int) and positions > 0:
            return positions
    raise ConfigurationError(
        f"The config.json of '{model}' has no max_position_embeddings. Set max_model_len in "
        f"{folder / ENGINE_ARGUMENTS_FILE}."
    )
