"""1/model.json as the words of vLLM's command line."""

import json
from pathlib import Path

import pytest

from engine.engine_arguments import EngineArgumentsError, command_line, read_engine_arguments


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"max_loras": 8}, ["--max-loras", "8"]),
        ({"gpu_memory_utilization": 0.9}, ["--gpu-memory-utilization", "0.9"]),
        ({"dtype": "float32"}, ["--dtype", "float32"]),
        ({"enable_lora": True}, ["--enable-lora"]),
        ({"enable_prefix_caching": False}, ["--no-enable-prefix-caching"]),
        ({"revision": None}, []),
        ({"served_model_name": ["a", "b"]}, ["--served-model-name", "a", "b"]),
        (
            {"rope_parameters": {"factor": 2.0}},
            ["--rope-parameters", '{"factor": 2.0}'],
        ),
        (
            {"lora_modules": [{"name": "a", "path": "/b c"}]},
            ["--lora-modules", '{"name": "a", "path": "/b c"}'],
        ),
        (
            {"model": "/models/with a space", "max_loras": 2},
            ["--model", "/models/with a space", "--max-loras", "2"],
        ),
    ],
)
def test_settings_become_words(settings: dict[str, object], words: list[str]) -> None:
    assert list(command_line(settings)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "can't be read as JSON"),
        ("{", "can't be read as JSON"),
        ("[]", "a JSON object with a 'model'"),
        ("{}", "a JSON object with a 'model'"),
        ('{"model": 5}', "a JSON object with a 'model'"),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(
    tmp_path: Path, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(EngineArgumentsError, match=words) as refused:
        read_engine_arguments(tmp_path, served_model_name="base", models_dir=tmp_path)
    assert str(tmp_path / "model.json") in str(refused.value)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(json.dumps({"model": "ä"}).encode("utf-16"))
    with pytest.raises(EngineArgumentsError, match="can't be read as JSON"):
        read_engine_arguments(tmp_path, served_model_name="base", models_dir=tmp_path)
