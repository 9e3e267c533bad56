"""API keys and the other identifiers that the registry gives out."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from hmac import compare_digest

_KEY = re.compile(r"pk-([0-9a-f]{20})-[A-Za-z0-9_-]{43}")
_SECRET_BYTES = 32
_ID_BYTES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key just made: the only time that its text is known here."""

    id: str
    text: str


def new_id(prefix: str = "") -> str:
    """The prefix and 20 random hex digits."""
    return f"{prefix}{secrets.token_hex(_ID_BYTES)}"


def new_key() -> NewKey:
    """`pk-<id>-<secret>`, the secret of 256 random bits."""
    key_id = new_id()
    return NewKey(id=key_id, text=f"pk-{key_id}-{secrets.token_urlsafe(_SECRET_BYTES)}")


def key_id_of(key: str) -> str | None:
    """The id inside a well-formed key."""
    match = _KEY.fullmatch(key)
    return None if match is None else match.group(1)


def key_sha256(key: str) -> str:
    """What is stored of a key. Being random, it needs no slow hash."""
    return hashlib.sha256(key.encode()).hexdigest()


def key_matches(key: str, stored_sha256: str) -> bool:
    """Whether a stored hash is this key's, in the same time for every wrong key."""
    return compare_digest(key_sha256(key), stored_sha256)
