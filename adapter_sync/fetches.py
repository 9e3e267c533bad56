"""Adapters that are still on their way here from a Hugging Face repo, as plain values.

Imports nothing of the project but its errors.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import PurePosixPath

from adapter_sync.errors import InvalidRepoError

DEFAULT_REVISION = "main"

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}")
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._ -]{0,127}")
_MAX_DEPTH = 8


class FetchStage(StrEnum):
    """How far a fetch is."""

    PENDING = "pending"
    FETCHING = "fetching"
    VALIDATING = "validating"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class HubRepo:
    """A repo as a sender names it: `revision` is a branch, a tag or a commit."""

    repo: str
    revision: str = DEFAULT_REVISION
    subfolder: str | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRepoError for what the hub could take for something else."""
        if _REPO.fullmatch(self.repo) is None or ".." in self.repo or "--" in self.repo:
            raise InvalidRepoError(param="repo", found=self.repo, expected="'organisation/name'")
        if _REVISION.fullmatch(self.revision) is None or ".." in self.revision:
            raise InvalidRepoError(
                param="revision", found=self.revision, expected="a branch, a tag or a commit"
            )
        if self.subfolder is not None and not _is_folder(self.subfolder):
            raise InvalidRepoError(
                param="subfolder", found=self.subfolder, expected="a folder inside the repo"
            )

    def path_of(self, file: str) -> str:
        """The file's path inside the repo."""
        return str(PurePosixPath(self.subfolder or "", file))


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedRepo:
    """A repo at one commit, its two files there and not too large."""

    source: HubRepo
    commit: str
    weights_bytes: int
    config_bytes: int

    @property
    def total_bytes(self) -> int:
        """What is to be downloaded."""
        return self.weights_bytes + self.config_bytes

    def document(self) -> dict[str, object]:
        """The source of an adapter from here, in JSON's types."""
        return {
            "type": "huggingface",
            "repo": self.source.repo,
            "revision": self.source.revision,
            "commit": self.commit,
            "subfolder": self.source.subfolder,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """An adapter being fetched: the id and name that it will have, and how far it is."""

    id: str
    tenant_id: str
    name: str
    base_model: str
    pinned: PinnedRepo
    stage: FetchStage
    bytes_done: int
    error_code: str | None
    error_message: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def requested_model(self) -> str:
        """The string a client will put into `model`."""
        return f"{self.base_model}:{self.name}"


def _is_folder(path: str) -> bool:
    parts = path.split("/")
    return len(parts) <= _MAX_DEPTH and all(_FOLDER.fullmatch(part) for part in parts)
