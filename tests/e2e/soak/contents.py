"""The adapters that the soak uploads, and what each of them answers."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

QUESTIONS = (
    "What is compound interest?",
    "What is compound interest, and why do banks like it?",
)
SHORT, LONG = 12, 40
Question = tuple[int, int]
"""The number of the question and the tokens asked for."""
ALL_QUESTIONS = tuple((number, tokens) for number in (0, 1) for tokens in (SHORT, LONG))


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A PEFT adapter's two files, known by its lora_alpha, and its greedy answers."""

    config: bytes
    weights: bytes
    lora_alpha: float
    answers: dict[Question, str] = field(default_factory=dict)

    @property
    def weights_sha256(self) -> str:
        """The name of its blob."""
        return sha256(self.weights).hexdigest()

    @property
    def files(self) -> dict[str, tuple[str, bytes]]:
        """The fields of an upload."""
        return {
            "config": ("adapter_config.json", self.config),
            "file": ("adapter_model.safetensors", self.weights),
        }

    @property
    def repo_files(self) -> dict[str, bytes]:
        """What a hub's repo holds."""
        return {"adapter_config.json": self.config, "adapter_model.safetensors": self.weights}

    def zipped(self) -> bytes:
        """A bundle with both."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
            for name, data in self.repo_files.items():
                archive.writestr(f"customer/{name}", data)
        return packed.getvalue()


def read_content(folder: Path, lora_alpha: float) -> Content:
    """The adapter in PEFT's folder."""
    return Content(
        config=(folder / "adapter_config.json").read_bytes(),
        weights=(folder / "adapter_model.safetensors").read_bytes(),
        lora_alpha=lora_alpha,
    )


def chat(model: str, question: Question) -> Mapping[str, Any]:
    """The body of a greedy request."""
    number, tokens = question
    return {
        "model": model,
        "messages": [{"role": "user", "content": QUESTIONS[number]}],
        "max_tokens": tokens,
        "temperature": 0,
    }
