"""What must hold for any bytes that come in as an adapter. Each target takes bytes and raises
AssertionError, or whatever broke, when it does not.

What is let through is shown to the readers behind us: vLLM's and PEFT's of the config,
safetensors' of the weights, zipfile's of the archive.
"""

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig
from safetensors.numpy import load, save
from vllm.config.lora import LoRAConfig
from vllm.lora.peft_helper import PEFTHelper

from adapter_sync.errors import AdapterTooLargeError, InvalidAdapterError
from adapter_sync.record import BaseModel
from adapter_sync.sources.bundle import unbundled
from adapter_sync.sources.files import CONFIG_FILE, WEIGHTS_FILE, AdapterFiles
from adapter_sync.staging import staged_file
from adapter_sync.tiers import load_tiers
from adapter_sync.validation import AdapterFacts, check_adapter

HIDDEN, INNER, LAYERS, RANK = 16, 24, 2, 4
BASE = BaseModel(
    name="tiny",
    max_lora_rank=16,
    max_model_len=64,
    tensor_shapes={
        f"model.layers.{layer}.{module}.weight": shape
        for layer in range(LAYERS)
        for module, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.v_proj": (HIDDEN, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
        }.items()
    },
)
TIER = replace(load_tiers().named("shared"), max_adapter_bytes=100_000)
ENGINE = LoRAConfig(max_lora_rank=BASE.max_lora_rank, lora_dtype=torch.float32)
CONFIG: Mapping[str, object] = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
}
Target = Callable[[bytes], None]


def good_weights() -> bytes:
    """LoRA on every q_proj and v_proj."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(LAYERS):
        for leaf in ("q_proj", "v_proj"):
            module = f"base_model.model.model.layers.{layer}.self_attn.{leaf}"
            for side, shape in (("A", (RANK, HIDDEN)), ("B", (HIDDEN, RANK))):
                tensors[f"{module}.lora_{side}.weight"] = rng.random(shape, dtype=np.float32)
    return save(tensors)


def check_weights(data: bytes) -> None:
    """A file of weights, without a config."""
    _check(data, None)


def check_config(data: bytes) -> None:
    """A config, beside weights that are good."""
    _check(good_weights(), data)


def check_bundle(data: bytes) -> None:
    """An archive; what is in it comes out as zipfile reads it, and no file is left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        received = folder / "received"
        received.write_bytes(data)
        files = AdapterFiles(weights=received, weights_sha256="as it came", config=None)
        uploads = folder / "uploads"
        try:
            with unbundled(files, tier=TIER, staging_file=partial(staged_file, uploads)) as found:
                if found.weights != received:
                    _check_unpacked(data, found)
                _facts(found.weights, found.config)
        except (InvalidAdapterError, AdapterTooLargeError) as error:
            _check_words(error)
        left = [path.name for path in folder.rglob("*") if path.is_file()]
        assert left == ["received"], left


TARGETS: Mapping[str, Target] = {
    "weights": check_weights,
    "config": check_config,
    "bundle": check_bundle,
}


def _check_unpacked(archive: bytes, found: AdapterFiles) -> None:
    weights = found.weights.read_bytes()
    assert len(weights) <= TIER.max_adapter_bytes
    assert found.weights_sha256 == hashlib.sha256(weights).hexdigest()
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        names = [name for name in opened.namelist() if name.rpartition("/")[2] == WEIGHTS_FILE]
        assert weights in [opened.read(name) for name in names]


def _check(file: bytes, config: bytes | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        weights = Path(name) / WEIGHTS_FILE
        weights.write_bytes(file)
        try:
            _facts(weights, config)
        except InvalidAdapterError as error:
            _check_words(error)


def _facts(weights: Path, config: bytes | None) -> None:
    """Raises InvalidAdapterError; what is let through is shown to those who read it later."""
    facts = check_adapter(weights, config=config, lora_alpha=None, base=BASE)
    assert 1 <= facts.rank <= BASE.max_lora_rank
    _check_weights_read(weights, facts)
    _check_config_read(facts)


def _check_weights_read(weights: Path, facts: AdapterFacts) -> None:
    tensors = load(weights.read_bytes())
    assert {name.split(".")[-3] for name in tensors} == set(facts.target_modules)
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


def _check_config_read(facts: AdapterFacts) -> None:
    with tempfile.TemporaryDirectory() as name:
        served = json.dumps(facts.config, allow_nan=False)
        (Path(name) / CONFIG_FILE).write_text(served)
        helper = PEFTHelper.from_local_dir(name, BASE.max_model_len)
        helper.validate_legal(ENGINE)
        LoraConfig.from_pretrained(name)


def _check_words(error: InvalidAdapterError | AdapterTooLargeError) -> None:
    """What the gateway does with a refusal: words, in UTF-8, of a bounded length."""
    json.dumps({"message": str(error)}, ensure_ascii=False).encode("utf-8")
    assert len(str(error)) < 4000, len(str(error))
