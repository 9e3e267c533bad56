"""Base models that come and go while another one serves, one of them for embeddings."""

import base64
import contextlib
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np
import openai
import psutil
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.stack_process import (
    BASE_MODEL,
    ROOT,
    Stack,
    example,
    upload,
    wait_for,
)

EMBEDDER = "all-minilm-l6-v2"
EMBEDDING_MODEL = ROOT / ".runtime" / "models" / EMBEDDER
TEXTS = [
    "What is the capital of France?",
    "Paris is the capital of France.",
    "Interest compounds.",
    "",
    "word " * 150,
]
ADD_DEADLINE_S = 600
pytestmark = pytest.mark.timeout(2 * ADD_DEADLINE_S)
"""Two engines start, one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """An installation to which base models were added while it served, and what happened then."""

    stack: Stack
    key: str
    pids: tuple[tuple[int, ...], tuple[int, ...]]
    """The first engine's processes, before and after."""
    streamed: list[str]
    """What was streamed meanwhile, answer by answer."""
    adapter_status: str
    """Of an adapter that was uploaded to the first base model while the second one's engine
    started."""
    listed_early: bool
    """Whether the second one was listed before it could answer."""
    added: subprocess.CompletedProcess[str]
    broken: subprocess.CompletedProcess[str]

    @property
    def openai(self) -> openai.OpenAI:
        return self.stack.openai(self.key)

    def listed(self) -> set[str]:
        return {model.id for model in self.openai.models.list()}

    def usage(self, model: str) -> dict[str, int]:
        with self.stack.api(self.key) as api:
            data = api.get("/v1/usage").json()["data"]
        names = ("requests", "prompt_tokens", "completion_tokens")
        return {name: sum(row[name] for row in data if row["model"] == model) for name in names}


def add_base_model(stack: Stack, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / "scripts" / "add-base-model"), *words],
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=ADD_DEADLINE_S,
    )


def answer(client: openai.OpenAI) -> str:
    chunks = client.completions.create(
        model=BASE_MODEL,
        prompt="One, two, three,",
        max_tokens=64,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    return "".join(chunk.choices[0].text for chunk in chunks)


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def grown(stack: Stack) -> Iterator[Grown]:
    """One base model that cannot start and one for embeddings come while the first streams."""
    try:
        key = stack.new_key("base-models")
        client = stack.openai(key)
        before, streamed, done = stack.engine_pids(), list[str](), threading.Event()

        def stream() -> None:
            while not done.is_set():
                streamed.append(answer(client))

        with ThreadPoolExecutor() as pool, stack.api(key) as api:
            streaming = pool.submit(stream)
            too_long = ["--model", BASE_MODEL, "--engine-argument", "max_model_len=1000000"]
            try:
                broken = pool.submit(add_base_model, stack, "broken", *too_long)
                adding = pool.submit(add_base_model, stack, EMBEDDER, "--model", EMBEDDER)
                wait_for((stack.repository / EMBEDDER).is_dir, "the folder")
                listed_early = EMBEDDER in {model.id for model in client.models.list()}
                uploaded = upload(api, "finance", example("finance"), wait_s=120)
                added, broken_result = adding.result(), broken.result()
            finally:
                done.set()
            streaming.result()
        yield Grown(
            stack=stack,
            key=key,
            pids=(before, stack.engine_pids()),
            streamed=streamed,
            adapter_status=uploaded.json()["status"],
            listed_early=listed_early,
            added=added,
            broken=broken_result,
        )
    finally:
        for name in ("broken", EMBEDDER):
            take_away(stack, name)


def take_away(stack: Stack, name: str) -> None:
    """Move a base model's folder out of the repository, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        (stack.repository / name).rename(stack.data / f"{name}-taken-away")


@pytest.fixture(scope="module")
def expected() -> dict[str, list[float]]:
    """Transformers' own, mean-pooled over the mask and normalised."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDING_MODEL)
    model = AutoModel.from_pretrained(EMBEDDING_MODEL, dtype=torch.float32)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    vectors = torch.nn.functional.normalize(pooled).tolist()
    return dict(zip(TEXTS, vectors, strict=True))


def test_the_first_base_model_is_undisturbed(grown: Grown) -> None:
    assert grown.pids[0] == grown.pids[1]
    assert len(grown.streamed) > 1
    assert set(grown.streamed) == {answer(grown.openai)}
    assert grown.adapter_status == "ready"


def test_one_comes_without_a_restart_and_is_listed_when_it_can_answer(grown: Grown) -> None:
    assert grown.added.returncode == 0, grown.added.stderr
    assert "it takes no adapters" in grown.added.stdout
    assert f"'{EMBEDDER}' serves." in grown.added.stdout
    assert not grown.listed_early
    assert {BASE_MODEL, f"{BASE_MODEL}:finance", EMBEDDER} <= grown.listed()
    assert grown.openai.models.retrieve(EMBEDDER).to_dict()["max_model_len"] == 256
    assert not (grown.stack.repository / f"{EMBEDDER}-adapters").exists()


def test_one_that_can_not_start_says_why_and_is_not_listed(grown: Grown) -> None:
    assert grown.broken.returncode == 1
    assert "max_model_len" in grown.broken.stderr
    assert "base_model.failed" in grown.stack.log.read_text(errors="replace")
    assert not any(name.startswith("broken") for name in grown.listed())
    with pytest.raises(openai.APIStatusError) as caught:
        grown.openai.completions.create(model="broken", prompt="Hello")
    assert caught.value.status_code == 503


def test_embeddings_are_transformers_own(grown: Grown, expected: dict[str, list[float]]) -> None:
    whole = grown.openai.embeddings.create(model=EMBEDDER, input=TEXTS, encoding_format="float")
    assert whole.model == EMBEDDER
    assert [each.index for each in whole.data] == list(range(len(TEXTS)))
    for text, each in zip(TEXTS, whole.data, strict=True):
        np.testing.assert_allclose(each.embedding, expected[text], atol=1e-4, rtol=0)
        assert np.linalg.norm(each.embedding) == pytest.approx(1, abs=1e-4)


def test_embeddings_of_tokens_and_in_base64_are_the_same(
    grown: Grown, expected: dict[str, list[float]]
) -> None:
    text = TEXTS[0]
    with grown.stack.api(grown.key) as api:
        told = api.post("/tokenize", json={"model": EMBEDDER, "prompt": text}).json()
        body = {"model": EMBEDDER, "input": [told["tokens"]], "encoding_format": "base64"}
        [packed] = api.post("/v1/embeddings", json=body).json()["data"]
        back = api.post("/detokenize", json={"model": EMBEDDER, "tokens": told["tokens"]}).json()
    assert told["max_model_len"] == 256
    assert "what is the capital of france?" in back["prompt"]
    vector = np.frombuffer(base64.b64decode(packed["embedding"]), dtype=np.float32)
    np.testing.assert_allclose(vector, expected[text], atol=1e-4, rtol=0)
    # The SDK asks for base64 unless it is told otherwise.
    [unpacked] = grown.openai.embeddings.create(model=EMBEDDER, input=text).data
    np.testing.assert_allclose(unpacked.embedding, expected[text], atol=1e-4, rtol=0)


def test_what_the_model_can_not_do_is_a_400_that_says_so(grown: Grown) -> None:
    client = grown.openai
    with pytest.raises(openai.BadRequestError) as chat:
        client.chat.completions.create(
            model=EMBEDDER, messages=[{"role": "user", "content": "Hello"}]
        )
    assert chat.value.code == "unsupported_endpoint"
    with pytest.raises(openai.BadRequestError) as embed:
        client.embeddings.create(model=BASE_MODEL, input="Hello")
    assert embed.value.code == "unsupported_endpoint"
    with pytest.raises(openai.BadRequestError, match=r"dimensions|matryoshka"):
        client.embeddings.create(model=EMBEDDER, input="Hello", dimensions=64)
    with pytest.raises(openai.BadRequestError, match="256"):
        client.embeddings.create(model=EMBEDDER, input="word " * 300)


def test_it_takes_no_adapters(grown: Grown) -> None:
    with grown.stack.api(grown.key) as api:
        refused = upload(api, "finance", example("finance"), base_model=EMBEDDER)
        unknown = api.post("/v1/embeddings", json={"model": f"{EMBEDDER}:x", "input": "Hello"})
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "adapters_not_supported"
    assert BASE_MODEL in refused.json()["error"]["message"]
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_usage_is_counted_as_it_is_told(grown: Grown) -> None:
    before = grown.usage(EMBEDDER)
    told = grown.openai.embeddings.create(model=EMBEDDER, input=TEXTS).usage
    wait_for(
        lambda: (
            grown.usage(EMBEDDER)
            == {
                "requests": before["requests"] + 1,
                "prompt_tokens": before["prompt_tokens"] + told.prompt_tokens,
                "completion_tokens": 0,
            }
        ),
        "the usage",
        deadline_s=60,
    )
    assert told.prompt_tokens == told.total_tokens > len(TEXTS)


def test_one_that_leaves_is_gone_and_the_others_serve(grown: Grown) -> None:
    """The last of these tests: it takes the embedding model away."""
    stack, client = grown.stack, grown.openai
    ready = f"http://{stack.triton_url}/v2/models/{EMBEDDER}/ready"
    assert httpx.get(ready).status_code == 200
    stubs = stack.processes("triton_python_backend_stub")
    [stub] = [each for each in stubs if f"/{EMBEDDER}/" in " ".join(each.cmdline())]
    engine = [stub, *stub.children(recursive=True)]
    take_away(stack, EMBEDDER)
    wait_for(lambda: EMBEDDER not in grown.listed(), "the end of it", deadline_s=120)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=EMBEDDER, input="Hello")
    wait_for(lambda: httpx.get(ready).status_code != 200, "the unloading", deadline_s=120)
    wait_for(lambda: not any(map(is_alive, engine)), "the end of its processes")
    assert set(grown.streamed) == {answer(client)}
    assert stack.engine_pids() == grown.pids[0]
