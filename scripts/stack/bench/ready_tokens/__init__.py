"""A base model without an engine: what the server around it costs, measured in a minute."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from adapter_sync.companion_folder import TEMPLATES
from stack.bench.servers import BASE_MODEL, MODEL_JSON, Installation, Server

MODEL = Path(__file__).with_name("model.py")


@contextlib.contextmanager
def running_ready_tokens(
    names: Sequence[str], tokens_per_s: float, folder: Path
) -> Iterator[dict[str, Server]]:
    """The project's server with ready tokens: through the gateway, and Triton alone.

    Raises ChildError.
    """
    with running_installation(tokens_per_s, folder / "ours") as installation:
        servers = (installation.server([]), installation.triton([]))
        yield {server.name: server for server in servers if server.name in names}


@contextlib.contextmanager
def running_installation(tokens_per_s: float, folder: Path) -> Iterator[Installation]:
    """The project's server with ready tokens. Raises ChildError."""
    installation = Installation(folder)
    repository = installation.settings.model_repository
    repository.mkdir(parents=True)
    write_base_model(repository / BASE_MODEL, tokens_per_s=tokens_per_s)
    with installation.running():
        yield installation


def write_base_model(folder: Path, *, tokens_per_s: float) -> None:
    """Make the Triton model, whose limits the gateway reads in the base model's own folder."""
    shutil.copytree(TEMPLATES / "base", folder)
    shutil.copyfile(MODEL, folder / "1" / "model.py")
    model = json.loads(MODEL_JSON.read_text(encoding="utf-8"))["model"]
    settings = {"model": model, "ready_tokens_per_s": tokens_per_s}
    (folder / "1" / "model.json").write_text(json.dumps(settings), encoding="utf-8")
