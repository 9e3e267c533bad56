"""The installation's settings, from the environment and a `.env` file in its home folder.

The home is LORA_HOME, which the scripts set to the checkout, else the working folder; relative
folders count from it. Imports nothing of the project but its errors.
"""

import hashlib
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import URL

from adapter_sync.errors import ConfigurationError

MAX_SOCKET_FOLDER_BYTES = 60
"""A Unix socket's address has 108 bytes; the sockets' own names take up to 42."""


TRITON_KEY_HEADER = "lora-triton-key"
_ADMIN_KEY = re.compile(r"(?!pk-)[!-~]{32,}")


def home() -> Path:
    """The folder that relative settings count from."""
    return Path(os.environ.get("LORA_HOME", ".")).resolve()


def _below_home(path: Path) -> Path:
    return home() / path.expanduser()


def _strong(key: SecretStr) -> SecretStr:
    if _ADMIN_KEY.fullmatch(key.get_secret_value()) is None:
        raise ValueError(
            "use at least 32 printable characters without blanks, which do not begin with 'pk-' "
            "as the tenants' keys do; `openssl rand -hex 32` makes a good one"
        )
    return key


Folder = Annotated[Path, AfterValidator(_below_home)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Settings(BaseSettings):
    """One installation: where it keeps its state and which ports it takes."""

    model_config = SettingsConfigDict(
        extra="ignore", frozen=True, env_ignore_empty=True, validate_default=True
    )

    lora_data_dir: Folder = Field(
        default=Path("data"), description="registry, blobs, staging, sockets and logs"
    )
    model_repository: Folder = Field(
        default=Path("model_repository"),
        description="Triton's model repository, on the same file system as LORA_DATA_DIR",
    )
    lora_models_dir: Folder = Field(
        default=Path(".runtime/models"),
        description="where a base model's relative `model` path is looked up first",
    )
    lora_registry_url: SecretStr | None = Field(
        default=None,
        description="the registry's database, postgresql+psycopg://USER:PASSWORD@HOST/DATABASE; "
        "without it an SQLite file in LORA_DATA_DIR",
    )
    lora_blob_trash_hours: float = Field(
        default=24,
        ge=0,
        description="how long a deleted adapter's files are kept, so that an older back-up of the "
        "registry finds them again; they go earlier while the disk is nearly full",
    )
    lora_blob_scrub_hours: float = Field(
        default=24, gt=0, description="in how many hours every blob is read and checked once"
    )
    lora_tiers_file: Folder | None = Field(
        default=None, description="a TOML file of tiers, in place of the built-in ones"
    )
    gateway_host: str = Field(default="127.0.0.1", description="the gateway's address")
    gateway_port: Port = Field(default=8080, description="the gateway's port")
    gateway_workers: int = Field(
        default=1, ge=1, le=64, description="the gateway's processes, which share its port"
    )
    lora_admin_key: Annotated[SecretStr, AfterValidator(_strong)] | None = Field(
        default=None,
        description="the key of the admin API, 32 characters or more; without it there is none",
    )
    lora_request_timeout_s: float = Field(
        default=1800, gt=0, description="how long a request for tokens may take, in seconds"
    )
    lora_stop_notice_s: float = Field(
        default=2,
        ge=0,
        description="how long a gateway that stops goes on serving while it says that it is not "
        "ready, in seconds",
    )
    lora_stop_within_s: float = Field(
        default=120,
        ge=1,
        description="how long requests under way may take when the gateway stops, in seconds",
    )
    lora_triton_key: Annotated[SecretStr, AfterValidator(_strong)] | None = Field(
        default=None,
        description="the key that Triton's own ports ask for, 32 characters or more; without it "
        "they ask for none",
    )
    triton_host: str = Field(default="127.0.0.1", description="Triton's address")
    triton_http_port: Port = Field(default=8000, description="Triton's HTTP port")
    triton_grpc_port: Port = Field(default=8001, description="Triton's gRPC port")
    triton_metrics_port: Port = Field(default=8002, description="Triton's metrics port")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - replaced: it can't move
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read the `.env` of the home folder, wherever the process was started."""
        dotenv = DotEnvSettingsSource(settings_cls, env_file=home() / ".env")
        return init_settings, env_settings, dotenv, file_secret_settings

    @property
    def triton_headers(self) -> dict[str, str]:
        """What Triton's HTTP port is to be sent with each request."""
        key = self.lora_triton_key
        return {} if key is None else {TRITON_KEY_HEADER: key.get_secret_value()}

    @property
    def triton_metadata(self) -> dict[str, str]:
        """The same for its gRPC port, which has a prefix of its own."""
        return {f"triton-grpc-protocol-{k}": value for k, value in self.triton_headers.items()}

    @property
    def registry_url(self) -> str:
        """SQLAlchemy's URL of the registry."""
        if self.lora_registry_url is not None:
            return self.lora_registry_url.get_secret_value()
        database = str(self.lora_data_dir / "registry.db")
        return URL.create("sqlite", database=database).render_as_string(hide_password=False)

    @property
    def blobs_folder(self) -> Path:
        """The content-addressed blobs."""
        return self.lora_data_dir / "blobs"

    @property
    def staging_folder(self) -> Path:
        """Where files are made before they are renamed in."""
        return self.lora_data_dir / "staging"

    @property
    def serve_lock(self) -> Path:
        """Held by scripts/serve while it runs."""
        return self.lora_data_dir / "serve.lock"

    @property
    def adapter_sync_lock(self) -> Path:
        """Held by adapter_sync while it runs."""
        return self.staging_folder / "adapter_sync.lock"

    @property
    def rate_limits_folder(self) -> Path:
        """What the workers of one gateway count together, for as long as it runs."""
        return self.lora_data_dir / "rate-limits" / f"{socket.gethostname()}-{self.gateway_port}"

    @property
    def socket_folder(self) -> Path:
        """The Unix sockets between companions and base models, below the data folder if short."""
        folder = self.lora_data_dir / "run"
        if len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER_BYTES:
            return folder
        key = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"lora-server-{os.getuid()}-{key}"


def load_settings() -> Settings:
    """The settings of this process. Raises ConfigurationError naming the variables at fault."""
    try:
        return Settings()
    except ValidationError as error:
        # Without the values: some settings may be secrets.
        faults = "; ".join(
            f"{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}" for each in error.errors()
        )
        raise ConfigurationError(f"A setting is wrong: {faults}.") from None
