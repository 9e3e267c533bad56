"""The examples of docs/triton.md, as they stand there, against a running installation."""

import json
import re
import subprocess
import sys

import pytest

from tests.stack_process import ROOT, Stack, example, upload

PAGE = (ROOT / "docs" / "triton.md").read_text()
EXAMPLES = re.findall(r"^```(bash|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def _adapter(stack: Stack) -> None:
    with stack.api(stack.new_key("reader-of-docs")) as api:
        assert upload(api, "docs", example("legal"), wait_s=30).json()["status"] == "ready"


def run(stack: Stack, language: str, code: str) -> str:
    """What an example prints. Only the ports are this installation's own."""
    ports = {"8000": "TRITON_HTTP_PORT", "8001": "TRITON_GRPC_PORT"}
    for port, setting in ports.items():
        code = code.replace(f"127.0.0.1:{port}", f"127.0.0.1:{stack.environment[setting]}")
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
    done = subprocess.run(
        [*command, code], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_has_examples_of_each_kind() -> None:
    assert {language for language, _ in EXAMPLES} == {"bash", "python"}


@pytest.mark.usefixtures("_adapter")
@pytest.mark.parametrize(("language", "code"), EXAMPLES)
def test_an_example_does_what_it_shows(stack: Stack, language: str, code: str) -> None:
    printed = run(stack, language, code)
    if "/generate " in code:
        whole, *events = printed.split("data: ")
        assert json.loads(whole)["text_output"].startswith("The capital of France is Paris")
        assert len([json.loads(event)["text_output"] for event in events]) > 1
    elif "-adapters/infer" in code:
        (output,) = json.loads(printed)["outputs"]
        assert json.loads(output["data"][0])["adapters"]
    else:
        assert language == "python"
        name, text = printed.split("\n", 1)
        assert name.startswith("smollm2-135m-instruct:")
        assert text.strip()
