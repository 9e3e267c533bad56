"""The secret key is made once, for nobody else to read, whoever starts first."""

import stat
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from adapter_sync.errors import ConfigurationError
from adapter_sync.secret_key import cache_salt, load_secret_key

PROCESSES = 4


def test_the_key_stays_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    key = load_secret_key(folder)
    assert len(key) == 32
    assert load_secret_key(folder) == key


def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    load_secret_key(tmp_path)
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600


def test_processes_that_race_get_the_same_key_and_leave_nothing_behind(tmp_path: Path) -> None:
    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("fork")) as pool:
        keys = set(pool.map(load_secret_key, [tmp_path] * PROCESSES * 4))
    assert len(keys) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["secret.key"]


def test_a_file_that_is_no_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.key").write_bytes(b"short")
    with pytest.raises(ConfigurationError, match="5 bytes, not 32"):
        load_secret_key(tmp_path)


def test_tenants_and_servers_have_salts_of_their_own() -> None:
    salts = {cache_salt(key, tenant) for key in (b"a", b"b") for tenant in ("ten_1", "ten_2")}
    assert len(salts) == 4
    assert all(len(salt) == 64 for salt in salts)
    assert cache_salt(b"a", "ten_1") in salts
