"""Adapters fetched from a hub over real HTTP, whole, private, broken and wrong."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapter_sync.errors import (
    AdapterTooLargeError,
    HubUnavailableError,
    InvalidAdapterError,
    InvalidRepoError,
    LoraServerError,
    RepoNotFoundError,
)
from adapter_sync.fetches import HubRepo
from adapter_sync.sources.hub import DownloadedAdapter, download, pin
from adapter_sync.tiers import load_tiers
from tests.hub_server import Hub, Repo, running_hub

WEIGHTS = bytes(range(256)) * 400
CONFIG = b'{"peft_type": "LORA"}'
FILES = {"adapter_model.safetensors": WEIGHTS, "adapter_config.json": CONFIG}
TIER = replace(load_tiers().named("shared"), max_adapter_bytes=30_000_000)
NAME = "org/lora"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # A token of the server's own, which must never be sent.
    monkeypatch.setenv("HF_TOKEN", "hf_servers_own")
    with running_hub() as hub:
        yield hub


def fetch(
    hub: Hub, folder: Path, source: HubRepo | None = None, *, token: str | None = None
) -> tuple[str, DownloadedAdapter]:
    pinned = pin(source or HubRepo(repo=NAME), token=token, tier=TIER, endpoint=hub.endpoint)
    return pinned.commit, download(pinned, folder, token=token, endpoint=hub.endpoint)


def test_exactly_the_two_files_of_the_pinned_commit_are_downloaded(
    hub: Hub, tmp_path: Path
) -> None:
    others = {"README.md": b"hello", "adapter_model.bin": b"pickle", "tokenizer.json": b"{}"}
    repo = hub.repos[NAME] = Repo(files=FILES | others)
    commit, files = fetch(hub, tmp_path)
    assert commit == repo.commit
    assert (files.weights.read_bytes(), files.config.read_bytes()) == (WEIGHTS, CONFIG)
    got = {path for command, path in hub.requests if command == "GET" and "/resolve/" in path}
    assert got == {f"/{NAME}/resolve/{commit}/{file}" for file in FILES}


@pytest.mark.parametrize("revision", ["main", "v1.0", "feature/x"])
def test_a_branch_or_tag_is_pinned_to_its_commit(hub: Hub, revision: str) -> None:
    repo = hub.repos[NAME] = Repo(files=FILES, revisions={"main", "v1.0", "feature/x"})
    source = HubRepo(repo=NAME, revision=revision)
    pinned = pin(source, token=None, tier=TIER, endpoint=hub.endpoint)
    assert pinned.commit == repo.commit
    assert pinned.total_bytes == len(WEIGHTS) + len(CONFIG)


def test_an_adapter_may_lie_in_a_subfolder(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files={f"checkpoints/last/{name}": data for name, data in FILES.items()})
    _, files = fetch(hub, tmp_path, HubRepo(repo=NAME, subfolder="checkpoints/last"))
    assert files.weights.read_bytes() == WEIGHTS


def test_a_subfolder_that_was_forgotten_is_named(hub: Hub) -> None:
    hub.repos[NAME] = Repo(files={f"last/{name}": data for name, data in FILES.items()})
    with pytest.raises(InvalidAdapterError, match=r"has last/adapter_model.safetensors: set sub"):
        pin(HubRepo(repo=NAME), token=None, tier=TIER, endpoint=hub.endpoint)


def test_a_private_repo_needs_the_senders_token_and_never_gets_the_servers(
    hub: Hub, tmp_path: Path
) -> None:
    hub.repos[NAME] = Repo(files=FILES, token="hf_senders")
    with pytest.raises(RepoNotFoundError, match="hf_token"):
        fetch(hub, tmp_path)
    with pytest.raises(RepoNotFoundError):
        fetch(hub, tmp_path, token="hf_other")
    fetch(hub, tmp_path, token="hf_senders")
    assert hub.tokens == {None, "Bearer hf_other", "Bearer hf_senders"}


def test_a_private_repo_and_none_are_told_in_the_same_words(hub: Hub) -> None:
    hub.repos[NAME] = Repo(files=FILES, token="hf_senders")
    told = []
    for name in (NAME, "org/none"):
        with pytest.raises(RepoNotFoundError) as caught:
            pin(HubRepo(repo=name), token=None, tier=TIER, endpoint=hub.endpoint)
        told.append(str(caught.value).replace(name, "…"))
    assert told[0] == told[1]


def test_a_gated_repo_says_what_to_do(hub: Hub) -> None:
    hub.repos[NAME] = Repo(files=FILES, token="hf_senders", gated=True)
    with pytest.raises(RepoNotFoundError, match="accept its conditions"):
        pin(HubRepo(repo=NAME), token=None, tier=TIER, endpoint=hub.endpoint)


def test_an_unknown_revision_is_named(hub: Hub) -> None:
    hub.repos[NAME] = Repo(files=FILES)
    with pytest.raises(RepoNotFoundError, match="no revision 'v9'") as caught:
        pin(HubRepo(repo=NAME, revision="v9"), token=None, tier=TIER, endpoint=hub.endpoint)
    assert caught.value.param == "revision"


@pytest.mark.parametrize("missing", sorted(FILES))
def test_a_repo_without_one_of_the_files_is_refused(hub: Hub, missing: str) -> None:
    hub.repos[NAME] = Repo(files={name: data for name, data in FILES.items() if name != missing})
    with pytest.raises(InvalidAdapterError, match=missing):
        pin(HubRepo(repo=NAME), token=None, tier=TIER, endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("file", "error"),
    [
        ("adapter_model.safetensors", AdapterTooLargeError),
        ("adapter_config.json", InvalidAdapterError),
    ],
)
def test_a_file_that_is_too_large_is_refused_before_a_byte_is_fetched(
    hub: Hub, file: str, error: type[LoraServerError]
) -> None:
    hub.repos[NAME] = Repo(files=FILES | {file: bytes(30_000_001)})
    with pytest.raises(error):
        pin(HubRepo(repo=NAME), token=None, tier=TIER, endpoint=hub.endpoint)
    assert [path for _, path in hub.requests if "/resolve/" in path] == []


def test_a_download_that_breaks_is_taken_up_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    # huggingface_hub keeps what arrived in pieces of 10 MB.
    weights = WEIGHTS * 250
    hub.repos[NAME] = Repo(files=FILES | {"adapter_model.safetensors": weights}, breaks=1)
    _, files = fetch(hub, tmp_path)
    assert files.weights.read_bytes() == weights
    assert len(weights) < hub.sent_bytes < 1.2 * len(weights)


def test_who_asks_is_told_of_every_byte_and_may_end_the_download(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files=FILES)
    pinned = pin(HubRepo(repo=NAME), token=None, tier=TIER, endpoint=hub.endpoint)
    told: list[int] = []
    download(pinned, tmp_path / "a", token=None, endpoint=hub.endpoint, on_bytes=told.append)
    assert sum(told) == pinned.total_bytes

    def enough(_: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        download(pinned, tmp_path / "b", token=None, endpoint=hub.endpoint, on_bytes=enough)
    assert [path for path in (tmp_path / "b").rglob("*.safetensors*") if path.is_file()] == []


def test_a_file_of_another_size_than_announced_is_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files=FILES, lies=True)
    with pytest.raises(HubUnavailableError, match="as announced"):
        fetch(hub, tmp_path)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_a_hub_in_trouble_is_a_transient_error(hub: Hub, status: int) -> None:
    hub.status = status
    with pytest.raises(HubUnavailableError, match=str(status)):
        pin(HubRepo(repo=NAME), token=None, tier=TIER, endpoint=hub.endpoint)


def test_no_hub_at_all_is_a_transient_error(hub: Hub, tmp_path: Path) -> None:
    hub.repos[NAME] = Repo(files=FILES)
    pinned = pin(HubRepo(repo=NAME), token=None, tier=TIER, endpoint=hub.endpoint)
    with pytest.raises(HubUnavailableError):
        pin(HubRepo(repo=NAME), token=None, tier=TIER, endpoint="http://127.0.0.1:9")
    hub.repos.clear()
    with pytest.raises(RepoNotFoundError):
        download(pinned, tmp_path, token=None, endpoint=hub.endpoint)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("repo", ""),
        ("repo", "lora"),
        ("repo", "a/b/c"),
        ("repo", "../b"),
        ("repo", "org/a..b"),
        ("repo", "org/a--b"),
        ("repo", "https://hub/org/lora"),
        ("repo", "org/lora\n"),
        ("revision", ""),
        ("revision", "../main"),
        ("revision", "a b"),
        ("revision", "-x"),
        ("subfolder", ""),
        ("subfolder", "/etc"),
        ("subfolder", "a/../b"),
        ("subfolder", "a//b"),
        ("subfolder", "a\\b"),
    ],
)
def test_what_can_name_no_repo_is_refused_before_the_hub_is_asked(param: str, value: str) -> None:
    with pytest.raises(InvalidRepoError) as caught:
        HubRepo(**{"repo": NAME} | {param: value})
    assert caught.value.param == param
