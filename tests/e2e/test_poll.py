"""The same hot-load where Triton polls its repository, and a clean end."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.stack_process import BASE_MODEL, Stack, running_stack, stop, upload, wait_for


@pytest.fixture(scope="module")
def poll_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A second installation, beside the one of the other tests, that polls."""
    with running_stack(tmp_path_factory.mktemp("poll"), control="poll") as running:
        yield running


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
