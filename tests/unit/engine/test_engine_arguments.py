"""1/model.json as the words of vLLM's command line."""

import json
from pathlib import Path

import pytest

from engine.admission_settings import AdmissionSettings
from engine.engine_arguments import (
    EngineArgumentsError,
    command_line,
    read_admission,
    read_engine_arguments,
)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"admission": {"turn_s": 2}}, []),
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


@pytest.mark.parametrize(
    ("given", "settings"),
    [
        ({}, AdmissionSettings()),
        ({"admission": {}}, AdmissionSettings()),
        ({"admission": False}, None),
        (
            {
                "admission": {
                    "max_running_shared": 8,
                    "max_prompt_tokens_shared": 7,
                    "max_waiting": 9,
                    "max_wait_s": 5,
                    "turn_s": 0,
                }
            },
            AdmissionSettings(
                max_running_shared=8,
                max_prompt_tokens_shared=7,
                max_waiting=9,
                max_wait_s=5,
                turn_s=0,
            ),
        ),
    ],
)
def test_the_queue_is_described_beside_the_engines_arguments(
    tmp_path: Path, given: dict[str, object], settings: AdmissionSettings | None
) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"model": "m", **given}))
    assert read_admission(tmp_path) == settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (True, "Expected `object`"),
        ({"max_runing_shared": 8}, "unknown field `max_runing_shared`"),
        ({"max_waiting": 0}, "Expected `int` >= 1"),
        ({"max_waiting": "8"}, "Expected `int`, got `str`"),
        ({"max_wait_s": 0}, "Expected `float` > 0"),
        ({"turn_s": -1}, "Expected `float` >= 0"),
    ],
)
def test_a_wrong_description_of_the_queue_is_refused_by_name(
    tmp_path: Path, given: object, words: str
) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"model": "m", "admission": given}))
    with pytest.raises(EngineArgumentsError, match=words) as refused:
        read_admission(tmp_path)
    assert "'admission'" in str(refused.value)
