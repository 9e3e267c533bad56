"""Base models read from Triton's model repository: folders, the Hugging Face cache and a hub."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save_file

from adapter_sync.base_models import (
    base_model_folders,
    is_embedding_model_on_hub,
    read_base_model,
)
from adapter_sync.errors import ConfigurationError

SHAPES = {
    "model.embed_tokens.weight": (10, 8),
    "model.layers.0.mlp.up_proj.weight": (16, 8),
    "model.layers.0.input_layernorm.weight": (8,),
}
MODELS = Path(__file__).parents[3] / ".runtime" / "models"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_model(folder: Path, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Path:
    """A Hugging Face folder with one safetensors file."""
    folder.mkdir(parents=True)
    save_file(
        {name: np.zeros(shape, np.float16) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    return folder


def write_sharded_model(folder: Path) -> Path:
    """A folder with a shard for each tensor."""
    folder.mkdir(parents=True)
    weight_map = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        weight_map[name] = f"model-{number}.safetensors"
        save_file({name: np.zeros(shape, np.float16)}, folder / weight_map[name])
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))
    return folder


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


@pytest.fixture
def add_base_model(tmp_path: Path) -> Callable[..., Path]:
    """Writes `<model_repository>/<name>/1/model.json`."""

    def add_base_model(arguments: object, name: str = "tiny") -> Path:
        folder = tmp_path / "model_repository" / name
        (folder / "1").mkdir(parents=True)
        if isinstance(arguments, dict):
            arguments = {"enable_lora": True, **arguments}
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        (folder / "1" / "model.json").write_text(text)
        return folder

    return add_base_model


AddBaseModel = Callable[..., Path]


def test_a_model_below_the_models_folder_is_read(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    write_model(models_dir / "tiny-files")
    folder = add_base_model(
        {"model": "tiny-files", "max_lora_rank": 64, "max_model_len": 32, "dtype": "float32"}
    )

    base = read_base_model(folder, models_dir=models_dir)

    assert base.name == "tiny"
    assert (base.max_lora_rank, base.max_model_len) == (64, 32)
    assert base.tensor_shapes == SHAPES


def test_limits_that_are_not_set_are_vllms_and_the_models_own(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    write_model(models_dir / "files")

    base = read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)

    assert (base.max_lora_rank, base.max_model_len) == (16, 64)


def test_the_text_part_of_a_multimodal_config_is_read(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    config = write_model(models_dir / "files") / "config.json"
    config.write_text(json.dumps({"text_config": {"max_position_embeddings": 77}}))

    base = read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)

    assert base.max_model_len == 77


def test_a_model_by_its_whole_path_is_read(
    add_base_model: AddBaseModel, models_dir: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "elsewhere" / "files")

    base = read_base_model(add_base_model({"model": str(model)}), models_dir=models_dir)

    assert base.tensor_shapes == SHAPES


def test_every_shard_of_a_sharded_model_is_read(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    write_sharded_model(models_dir / "files")

    base = read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)

    assert base.tensor_shapes == SHAPES


def test_weights_in_another_format_beside_them_are_left_alone(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    model = write_model(models_dir / "files")
    save_file({"layers.0.w": np.zeros((2, 2), np.float16)}, model / "consolidated.safetensors")

    base = read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)

    assert base.tensor_shapes == SHAPES


def write_embedding_model(folder: Path) -> Path:
    """A BERT as sentence-transformers saves it, but for its weights, which are in PyTorch's."""
    folder.mkdir(parents=True)
    config = {"architectures": ["BertModel"], "model_type": "bert", "max_position_embeddings": 512}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        {"enable_lora": False},
        {"runner": "pooling"},
        {"convert": "embed"},
        {"convert": "classify"},
        {"task": "embed"},
        {"task": "score", "enable_lora": False},
    ],
)
def test_an_embedding_model_and_one_without_lora_take_no_adapters_and_need_no_shapes(
    add_base_model: AddBaseModel, models_dir: Path, arguments: dict[str, object]
) -> None:
    write_embedding_model(models_dir / "files")

    base = read_base_model(add_base_model({"model": "files", **arguments}), models_dir=models_dir)

    assert not base.takes_adapters
    assert (base.tensor_shapes, base.max_model_len) == ({}, 512)


def test_the_real_embedding_model_takes_none_whatever_its_engine_is_told(
    add_base_model: AddBaseModel,
) -> None:
    folder = add_base_model({"model": "all-minilm-l6-v2"}, "embedder")

    base = read_base_model(folder, models_dir=MODELS)

    assert (base.takes_adapters, base.tensor_shapes) == (False, {})
    assert base.max_model_len == 256  # sentence-transformers' own; its config says 512


def test_a_model_takes_no_adapters_unless_lora_is_enabled(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    write_model(models_dir / "files")
    without = add_base_model(json.dumps({"model": "files"}), "without")
    with_lora = {"model": "files", "enable_lora": True, "runner": "generate", "convert": "none"}

    assert not read_base_model(without, models_dir=models_dir).takes_adapters
    assert read_base_model(add_base_model(with_lora), models_dir=models_dir).takes_adapters


def test_base_model_folders_are_those_with_engine_arguments(
    add_base_model: AddBaseModel, tmp_path: Path
) -> None:
    repository = tmp_path / "model_repository"
    assert base_model_folders(repository) == []
    folders = [add_base_model({}, name) for name in ("b", "a", ".hidden")]
    (repository / "a-adapters" / "1").mkdir(parents=True)

    assert base_model_folders(repository) == [folders[1], folders[0]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{", "1/model.json is not a JSON object of vLLM's engine arguments: the file: Invalid"),
        ([], "is not a JSON object of vLLM's engine arguments: the file: "),
        ({}, "engine arguments: model: Field required"),
        ({"model": ""}, "model: String should have at least 1 character"),
        ({"model": "files", "max_lora_rank": "64"}, "max_lora_rank: Input should be a valid int"),
        ({"model": "files", "max_lora_rank": 0}, "max_lora_rank: Input should be greater"),
        ({"model": "files", "max_model_len": -1}, "max_model_len: Input should be greater"),
        ({"model": "no such folder"}, "There is no folder 'no such folder', and it is not a Hugg"),
    ],
)
def test_engine_arguments_that_are_wrong_are_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path, arguments: object, words: str
) -> None:
    write_model(models_dir / "files")
    folder = add_base_model(arguments)

    with pytest.raises(ConfigurationError) as caught:
        read_base_model(folder, models_dir=models_dir)

    assert words in str(caught.value)


def test_a_folder_without_engine_arguments_is_a_configuration_error(
    tmp_path: Path, models_dir: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"1/model\.json can't be read: No such file"):
        read_base_model(tmp_path / "nothing", models_dir=models_dir)


def test_a_name_that_would_split_a_requested_model_is_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"'a:b' can't name a base model"):
        read_base_model(add_base_model({"model": "x"}, "a:b"), models_dir=models_dir)


def test_a_model_without_safetensors_is_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    (models_dir / "files").mkdir()

    with pytest.raises(ConfigurationError, match=r"has no \*\.safetensors.*save_pretrained"):
        read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)


def test_a_broken_weights_file_is_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    model = write_model(models_dir / "files")
    (model / "model.safetensors").write_bytes(b"half")

    with pytest.raises(ConfigurationError, match=r"can't be read as safetensors.*Download"):
        read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}'])
def test_a_broken_index_is_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path, index: str
) -> None:
    model = write_model(models_dir / "files")
    (model / "model.safetensors.index.json").write_text(index)

    with pytest.raises(ConfigurationError, match=r"model\.safetensors\.index\.json "):
        read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)


def test_a_missing_shard_is_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path
) -> None:
    model = write_sharded_model(models_dir / "files")
    (model / "model-1.safetensors").unlink()

    with pytest.raises(ConfigurationError, match=r"model-1\.safetensors can't be read"):
        read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)


@pytest.mark.parametrize("config", [None, "{}", '{"max_position_embeddings": 0}'])
def test_a_config_without_a_length_asks_for_max_model_len(
    add_base_model: AddBaseModel, models_dir: Path, config: str | None
) -> None:
    path = write_model(models_dir / "files") / "config.json"
    path.unlink()
    if config is not None:
        path.write_text(config)

    with pytest.raises(ConfigurationError, match=r"no max_position_embeddings. Set max_model_len"):
        read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)


@pytest.mark.parametrize(
    "shapes",
    [
        {"model.layers.0.mlp.up_proj.qweight": (2, 16), "model.norm.weight": (8,)},
        {
            "model.layers.0.mlp.up_proj.weight": (64, 1),
            "model.layers.0.mlp.up_proj.weight.absmax": (2,),
        },
    ],
)
def test_packed_weights_are_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    write_model(models_dir / "files", shapes)

    with pytest.raises(ConfigurationError, match=r"quantised.*unquantised or in FP8"):
        read_base_model(add_base_model({"model": "files"}), models_dir=models_dir)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache, and no way to the hub."""
    cache = tmp_path / "hub-cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def snapshot(hub_cache: Path, revision: str = "main") -> Path:
    """Where a model's files lie once they have been downloaded."""
    model = hub_cache / "models--org--tiny"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / revision).write_text(COMMIT)
    return model / "snapshots" / COMMIT


def test_a_model_in_the_hugging_face_cache_is_read(
    add_base_model: AddBaseModel, models_dir: Path, hub_cache: Path
) -> None:
    write_sharded_model(snapshot(hub_cache, "v2"))
    folder = add_base_model({"model": "org/tiny", "revision": "v2"})

    base = read_base_model(folder, models_dir=models_dir)

    assert base.tensor_shapes == SHAPES
    assert base.max_model_len == 64


@pytest.mark.parametrize("downloaded", [False, True])
def test_a_model_that_is_not_here_and_no_way_to_the_hub_are_a_configuration_error(
    add_base_model: AddBaseModel,
    models_dir: Path,
    hub_cache: Path,
    downloaded: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    if downloaded:  # but not all of it
        (write_sharded_model(snapshot(hub_cache)) / "model-2.safetensors").unlink()

    with pytest.raises(ConfigurationError, match=r"model 'org/tiny' can't be read .*HF_TOKEN"):
        read_base_model(add_base_model({"model": "org/tiny"}), models_dir=models_dir)


def test_of_a_cached_model_without_adapters_only_the_config_is_needed(
    add_base_model: AddBaseModel, models_dir: Path, hub_cache: Path
) -> None:
    write_embedding_model(snapshot(hub_cache))
    folder = add_base_model({"model": "org/tiny", "runner": "pooling"})

    assert read_base_model(folder, models_dir=models_dir).max_model_len == 512


class Hub(ThreadingHTTPServer):
    """As much of the Hugging Face hub as it takes to serve one folder as "org/tiny"."""

    daemon_threads = True
    folder: Path
    sent_bytes = 0


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        prefix, _, name = self.path.partition("/resolve/main/")
        file = self.server.folder / name
        if prefix != "/org/tiny" or not file.is_file():
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if name else "RepoNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            return b""
        data = file.read_bytes()
        asked_range = self.headers.get("range")
        if asked_range:
            first, last = map(int, asked_range.removeprefix("bytes=").split("-"))
            data = data[first : last + 1]
        self.send_response(206 if asked_range else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(file.read_bytes()).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.server.sent_bytes += len(data)
        return data

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    assert not hub_cache.exists()
    with Hub(("127.0.0.1", 0), HubHandler) as server:
        server.folder = tmp_path / "on-the-hub"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("write", [write_model, write_sharded_model])
def test_a_model_on_the_hub_is_read_from_its_headers(
    add_base_model: AddBaseModel, models_dir: Path, hub: Hub, write: Callable[[Path], Path]
) -> None:
    write(hub.folder)

    base = read_base_model(add_base_model({"model": "org/tiny"}), models_dir=models_dir)

    assert base.tensor_shapes == SHAPES
    assert base.max_model_len == 64


def test_a_model_of_which_only_the_config_is_here_is_read_on_the_hub(
    add_base_model: AddBaseModel, models_dir: Path, hub: Hub, hub_cache: Path
) -> None:
    write_model(hub.folder)
    cached = snapshot(hub_cache)
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))

    base = read_base_model(add_base_model({"model": "org/tiny"}), models_dir=models_dir)

    assert base.tensor_shapes == SHAPES


def test_the_hubs_config_is_needed_only_for_the_length(
    add_base_model: AddBaseModel, models_dir: Path, hub: Hub
) -> None:
    (write_model(hub.folder) / "config.json").unlink()
    folder = add_base_model({"model": "org/tiny", "max_model_len": 32})

    assert read_base_model(folder, models_dir=models_dir).max_model_len == 32


def test_of_a_hub_model_without_adapters_only_the_config_is_fetched(
    add_base_model: AddBaseModel, models_dir: Path, hub: Hub
) -> None:
    write_embedding_model(hub.folder)
    folder = add_base_model({"model": "org/tiny", "enable_lora": False})

    base = read_base_model(folder, models_dir=models_dir)

    assert (base.takes_adapters, base.max_model_len) == (False, 512)


def test_a_model_on_the_hub_tells_whether_it_makes_embeddings(hub: Hub) -> None:
    write_model(hub.folder)
    assert not is_embedding_model_on_hub("org/tiny", None)
    pooling = {"type": "sentence_transformers.models.Pooling"}
    (hub.folder / "modules.json").write_text(json.dumps([pooling]))
    assert is_embedding_model_on_hub("org/tiny", None)
    with pytest.raises(ConfigurationError, match="model 'org/other' can't be read"):
        is_embedding_model_on_hub("org/other", None)


def test_a_large_model_on_the_hub_is_not_downloaded(
    add_base_model: AddBaseModel, models_dir: Path, hub: Hub
) -> None:
    write_model(hub.folder, SHAPES | {"model.layers.0.mlp.down_proj.weight": (2000, 1000)})

    read_base_model(add_base_model({"model": "org/tiny"}), models_dir=models_dir)

    assert 0 < hub.sent_bytes < 200_000


def test_a_hub_that_does_not_answer_is_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path, hub: Hub
) -> None:
    hub.shutdown()
    hub.server_close()

    with pytest.raises(ConfigurationError, match=r"model 'org/tiny' can't be read .*refused"):
        read_base_model(add_base_model({"model": "org/tiny"}), models_dir=models_dir)


@pytest.mark.parametrize("model", ["org/other", "org/tiny"])
def test_a_model_that_the_hub_has_not_is_a_configuration_error(
    add_base_model: AddBaseModel, models_dir: Path, hub: Hub, model: str
) -> None:
    hub.folder.mkdir()

    with pytest.raises(ConfigurationError, match=rf"model '{model}' can't be read .*HF_TOKEN"):
        read_base_model(add_base_model({"model": model}), models_dir=models_dir)
