"""Real files to begin from: one folder for each target."""

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.fuzz.targets import CONFIG, good_weights
from tests.stack_process import EXAMPLES, example
from tests.zips import zipped

PATTERNS: Mapping[str, object] = {
    "rank_pattern": {"layers.0.self_attn.q_proj": 4, "v_proj": 4},
    "alpha_pattern": {"q_proj": 16.5},
    "use_rslora": True,
    "layers_to_transform": [0, 1],
    "layers_pattern": "layers",
    "exclude_modules": ["up_proj"],
    "bias": "none",
    "modules_to_save": None,
    "init_lora_weights": "gaussian",
    "base_model_name_or_path": "org/tiny",
}


# What the parsers know, so that the fuzzer need not find it letter by letter.
WORDS = (
    *CONFIG,
    *PATTERNS,
    *(
        "__metadata__",
        "dtype",
        "shape",
        "data_offsets",
        "F32",
        "BF16",
        "lora_A",
        "lora_B",
        "weight",
    ),
    *("true", "null", "NaN", "1e999", "q_proj", "all-linear", "layers", "self_attn", "LORA"),
    *("adapter_model.safetensors", "adapter_config.json", "config.json", "__MACOSX", "../"),
)


def write_dictionary(file: Path) -> None:
    """The words, as libFuzzer reads them."""
    file.write_text("".join(f'"{word}"\n' for word in WORDS))


def write_corpus(target: str, folder: Path) -> None:
    """The target's files, numbered."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(_CORPORA[target]()):
        (folder / f"{number}").write_bytes(data)


def _weights() -> Iterator[bytes]:
    good = good_weights()
    yield good
    yield good[: len(good) // 2]
    for name in EXAMPLES:
        # The header, which is what is parsed; the numbers would only make it slow.
        file = (example(name) / "adapter_model.safetensors").read_bytes()
        yield file[: 8 + int.from_bytes(file[:8], "little")]


def _configs() -> Iterator[bytes]:
    yield json.dumps(CONFIG).encode()
    yield json.dumps({**CONFIG, **PATTERNS}, indent=2).encode()
    for name in EXAMPLES:
        yield (example(name) / "adapter_config.json").read_bytes()


def _bundles() -> Iterator[bytes]:
    config = json.dumps(CONFIG)
    files: dict[str, bytes | str] = {
        "adapter_model.safetensors": good_weights(),
        "adapter_config.json": config,
    }
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        yield zipped(files, method=method)
        yield zipped({f"a/b/{name}": data for name, data in files.items()}, method=method)
    yield zipped({"adapter_model.safetensors": good_weights(), "config.json": config})
    yield zipped({**files, "__MACOSX/._a": b"", "README.md": b"# A"}, comment=b"packed")


_CORPORA = {"weights": _weights, "config": _configs, "bundle": _bundles}
