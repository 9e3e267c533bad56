"""The same hot-load where Triton polls its repository, and a clean end."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from adapter_sync.lora_map import adapter_files_name
from adapter_sync.settings import TRITON_KEY_HEADER
from tests.stack_process import BASE_MODEL, Stack, running_stack, stop, upload, wait_for

TRITON_KEY = "triton-0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def poll_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A second installation, beside the one of the other tests, that polls and wants a key."""
    folder, settings = tmp_path_factory.mktemp("poll"), {"LORA_TRITON_KEY": TRITON_KEY}
    with running_stack(folder, control="poll", settings=settings) as running:
        yield running


def test_triton_asks_for_its_key(poll_stack: Stack) -> None:
    model = f"http://{poll_stack.triton_url}/v2/models/{BASE_MODEL}"
    body = {"text_input": "Once", "sampling_parameters": '{"max_tokens": 2}'}
    assert httpx.get(f"{model}/ready").status_code == 200
    refused = [
        httpx.post(f"{model}/generate", json=body),
        httpx.post(f"{model}/generate", json=body, headers={TRITON_KEY_HEADER: "wrong"}),
        httpx.post(f"http://{poll_stack.triton_url}/v2/repository/index"),
    ]
    assert [answer.status_code for answer in refused] == [403, 403, 403]
    keyed = httpx.post(
        f"{model}/generate", json=body, headers={TRITON_KEY_HEADER: TRITON_KEY}, timeout=60
    )
    assert keyed.status_code == 200
    url = f"127.0.0.1:{poll_stack.environment['TRITON_GRPC_PORT']}"
    with grpcclient.InferenceServerClient(url) as client:
        with pytest.raises(InferenceServerException):
            client.get_model_metadata(BASE_MODEL)
        headers = {f"triton-grpc-protocol-{TRITON_KEY_HEADER}": TRITON_KEY}
        assert client.get_model_metadata(BASE_MODEL, headers=headers).name == BASE_MODEL


def test_an_adapter_is_hot_loaded_replaced_and_deleted_without_a_load_call(
    poll_stack: Stack, random_adapters: list[Path]
) -> None:
    key = poll_stack.new_key("poller")
    client = poll_stack.openai(key)

    def ask(model: str) -> str | None:
        messages = [{"role": "user", "content": "What is compound interest?"}]
        completion = client.chat.completions.create(
            model=model,
            messages=messages,  # type: ignore[arg-type]
            max_tokens=12,
            temperature=0,
        )
        return completion.choices[0].message.content

    pids = poll_stack.engine_pids()
    with poll_stack.api(key) as api:
        first = upload(api, "polled", random_adapters[2], wait_s=30).json()
        assert first["status"] == "ready"
        first_answer = ask(first["model"])
        assert first_answer != ask(BASE_MODEL)
        api.delete(f"/v1/adapters/{first['id']}").raise_for_status()
        second = upload(api, "polled", random_adapters[3], wait_s=30).json()
        assert second["status"] == "ready"
        assert ask(second["model"]) not in (first_answer, ask(BASE_MODEL))
        wait_for(lambda: len(poll_stack.adapter_folders()) == 1, "the end of the first one's files")
    assert poll_stack.engine_pids() == pids
    assert poll_stack.leftovers() == []


def test_the_model_that_only_holds_the_files_is_one_to_triton_and_says_what_to_ask(
    poll_stack: Stack,
) -> None:
    model = f"http://{poll_stack.triton_url}/v2/models/{adapter_files_name(BASE_MODEL)}"
    wait_for(lambda: httpx.get(f"{model}/ready").is_success, "the model")
    headers = {TRITON_KEY_HEADER: TRITON_KEY}
    refused = httpx.post(f"{model}/infer", json={"inputs": []}, headers=headers)
    assert refused.status_code == 500
    assert "ask its base model" in refused.json()["error"]


def test_ctrl_c_leaves_no_process_socket_or_shared_memory(poll_stack: Stack) -> None:
    answer_many(poll_stack)
    pids = poll_stack.engine_pids()
    shared_memory = set(Path("/dev/shm").iterdir())  # noqa: S108
    mine = [region for region in shared_memory if poll_stack_owns(region, pids)]
    assert mine
    assert any((poll_stack.data / "run").rglob("*"))
    assert stop(poll_stack) == 0
    assert poll_stack.processes("") == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert list((poll_stack.data / "run").iterdir()) == []
    assert [region for region in mine if region.exists()] == []
    # Ended by itself, within Triton's own time, not by force.
    assert "Exit timeout expired" not in poll_stack.log.read_text(errors="replace")


def answer_many(stack: Stack) -> None:
    """Short answers, whole and streamed: each of them that Triton kept would hold up its end."""
    client = stack.openai(stack.new_key("many"))

    def ask(number: int) -> None:
        answer = client.chat.completions.create(
            model=BASE_MODEL,
            messages=[{"role": "user", "content": "Hi"}],
            max_tokens=2,
            stream=bool(number % 2),
        )
        assert list(answer)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(60)))


def poll_stack_owns(region: Path, pids: tuple[int, ...]) -> bool:
    """Whether one of the engine's processes has the region mapped or open."""
    for pid in pids:
        maps = Path(f"/proc/{pid}/maps").read_text()
        if str(region) in maps:
            return True
    return False
