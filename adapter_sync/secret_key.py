"""The server's own secret key, a file in the data folder, and what is derived from it."""

import base64
import contextlib
import hmac
import os
import secrets
from hashlib import sha256
from pathlib import Path

from cryptography.fernet import Fernet

from adapter_sync.errors import ConfigurationError

SECRET_KEY_FILE = "secret.key"  # noqa: S105  # a name, not the key
_KEY_BYTES = 32


def load_secret_key(data_folder: Path) -> bytes:
    """The key, made when there is none yet; processes that race get the same one.

    Raises ConfigurationError when the file is not a key.
    """
    path = data_folder / SECRET_KEY_FILE
    if not path.exists():
        _make(path)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ConfigurationError(
            f"{path} has {len(key)} bytes, not {_KEY_BYTES}. Remove it to get a new key: "
            "cached prompt prefixes are lost, and fetches under way from private repos fail."
        )
    return key


def cache_salt(key: bytes, tenant_id: str) -> str:
    """The salt (hex) that keeps a tenant's cached prompt prefixes apart from the others'."""
    return hmac.new(key, tenant_id.encode(), sha256).hexdigest()


def seal(key: bytes, secret: str) -> str:
    """A sender's secret, so that it can be kept for a while and read only with the key."""
    return _sealer(key).encrypt(secret.encode()).decode()


def unseal(key: bytes, sealed: str) -> str:
    """The secret. Raises cryptography's InvalidToken when another key sealed it."""
    return _sealer(key).decrypt(sealed.encode()).decode()


def _sealer(key: bytes) -> Fernet:
    derived = hmac.new(key, b"seal", sha256).digest()
    return Fernet(base64.urlsafe_b64encode(derived))


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # A link, not a rename: the first process wins and nobody's key is replaced.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
