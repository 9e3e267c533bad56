"""An adapter in a Hugging Face repo: looked at and pinned to a commit, then downloaded.

Only the sender's own token is ever used, never the server's. HF_ENDPOINT names another hub.
https://huggingface.co/docs/huggingface_hub/guides/download
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from adapter_sync.errors import (
    AdapterTooLargeError,
    HubUnavailableError,
    InvalidAdapterError,
    RepoNotFoundError,
)
from adapter_sync.fetches import HubRepo, PinnedRepo
from adapter_sync.sources.files import CONFIG_FILE, WEIGHTS_FILE
from adapter_sync.tiers import Tier
from adapter_sync.validation.config import MAX_CONFIG_BYTES

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadedAdapter:
    """The two files, in the folder that they were downloaded to."""

    weights: Path
    config: Path


def pin(
    source: HubRepo, *, token: str | None, tier: Tier, endpoint: str | None = None
) -> PinnedRepo:
    """Ask the hub what the repo holds; not a byte of a file is downloaded.

    Raises:
        RepoNotFoundError: there is no such repo or revision, or the token may not read it.
        InvalidAdapterError: it lacks one of the two files.
        AdapterTooLargeError: the weights are over the tier's limit.
        HubUnavailableError: the hub does not answer as it should.

    """
    with _hub_errors(source):
        info = HfApi(endpoint=endpoint).model_info(
            source.repo,
            revision=source.revision,
            files_metadata=True,
            token=token or False,
            timeout=_ETAG_TIMEOUT_S,
        )
    if info.sha is None or _COMMIT.fullmatch(info.sha) is None:
        raise HubUnavailableError(f"The hub names no commit of '{source.repo}'.")
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    pinned = PinnedRepo(
        source=source,
        commit=info.sha,
        weights_bytes=_size(source, WEIGHTS_FILE, sizes),
        config_bytes=_size(source, CONFIG_FILE, sizes),
    )
    if pinned.weights_bytes > tier.max_adapter_bytes:
        raise AdapterTooLargeError(limit_bytes=tier.max_adapter_bytes, tier=tier.name)
    if pinned.config_bytes > MAX_CONFIG_BYTES:
        raise InvalidAdapterError(
            f"{source.path_of(CONFIG_FILE)} in '{source.repo}' has {pinned.config_bytes} bytes, at "
            f"most {MAX_CONFIG_BYTES} are allowed.",
            param="config",
        )
    return pinned


def download(
    pinned: PinnedRepo,
    folder: Path,
    *,
    token: str | None,
    endpoint: str | None = None,
    on_bytes: Callable[[int], None] | None = None,
) -> DownloadedAdapter:
    """Fetch the two files of the pinned commit into a folder of the caller's.

    A connection that breaks is taken up again where it broke. `on_bytes` is told how many more
    bytes came, and may raise to end the download; without it a progress bar goes to stderr.

    Raises:
        RepoNotFoundError: the repo has gone, or the token's right to it.
        HubUnavailableError: the hub does not answer, or sends another size than it announced.

    """
    source = pinned.source
    api = HfApi(endpoint=endpoint)
    bar = None if on_bytes is None else _telling(on_bytes)
    paths = {}
    for file, expected in (
        (CONFIG_FILE, pinned.config_bytes),
        (WEIGHTS_FILE, pinned.weights_bytes),
    ):
        with _hub_errors(source):
            path = Path(
                api.hf_hub_download(
                    source.repo,
                    source.path_of(file),
                    revision=pinned.commit,
                    token=token or False,
                    local_dir=folder,
                    # Never the server's own cache: it may hold what the sender can't read.
                    cache_dir=folder / ".cache",
                    etag_timeout=_ETAG_TIMEOUT_S,
                    tqdm_class=bar,
                )
            )
        size_bytes = path.lstat().st_size
        if size_bytes != expected:
            raise HubUnavailableError(
                f"The hub sent {size_bytes} bytes of {file}, not {expected} as announced."
            )
        paths[file] = path
    return DownloadedAdapter(weights=paths[WEIGHTS_FILE], config=paths[CONFIG_FILE])


def _telling(on_bytes: Callable[[int], None]) -> type[tqdm]:
    """huggingface_hub tells its progress bar alone how far it is."""

    class Telling(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            on_bytes(int(n or 0))

    return Telling


def _size(source: HubRepo, file: str, sizes: dict[str, int | None]) -> int:
    path = source.path_of(file)
    size_bytes = sizes.get(path)
    if size_bytes is not None:
        return size_bytes
    found = sorted(name for name in sizes if name.endswith(file))[:3]
    elsewhere = (
        f" It has {', '.join(found)}: set subfolder." if found and not path.count("/") else ""
    )
    raise InvalidAdapterError(
        f"The repo '{source.repo}' has no {path} at '{source.revision}'.{elsewhere} An adapter is "
        f"{WEIGHTS_FILE} with its {CONFIG_FILE}, as PEFT's save_pretrained writes them.",
        param="repo",
    )


@contextmanager
def _hub_errors(source: HubRepo) -> Iterator[None]:
    """Turn the hub's errors into ours; their own words may hold addresses, so few are passed on."""
    try:
        yield
    except RevisionNotFoundError as error:
        raise RepoNotFoundError(
            f"The repo '{source.repo}' has no revision '{source.revision}'.", param="revision"
        ) from error
    except GatedRepoError as error:
        raise RepoNotFoundError(
            f"The repo '{source.repo}' is gated: accept its conditions on the hub, and send the "
            "hf_token of an account that has."
        ) from error
    except (RepositoryNotFoundError, DisabledRepoError) as error:
        raise RepoNotFoundError(
            f"There is no repo '{source.repo}' on the hub that can be read. If it is private, send "
            "an hf_token that may read it."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        raise HubUnavailableError(f"The hub answers {status} for '{source.repo}'.") from error
    except (httpx2.HTTPError, LocalEntryNotFoundError, FileMetadataError) as error:
        raise HubUnavailableError(
            f"The hub does not answer for '{source.repo}' ({type(error).__name__})."
        ) from error
    except ValueError as error:
        raise HubUnavailableError(f"The hub's answer for '{source.repo}' can't be read.") from error
