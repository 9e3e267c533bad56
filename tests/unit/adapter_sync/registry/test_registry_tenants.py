import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from adapter_sync.errors import (
    InvalidApiKeyError,
    InvalidNameError,
    TenantExistsError,
    TenantNotFoundError,
    UnknownTierError,
)
from adapter_sync.registry import Registry


def test_a_key_leads_to_its_tenant(registry: Registry) -> None:
    acme = registry.create_tenant("acme", "shared")
    rival = registry.create_tenant("rival", "reserved")
    first, second = registry.create_key("acme"), registry.create_key("acme")
    other = registry.create_key("rival")
    assert [registry.caller(key).tenant for key in (first, second, other)] == [acme, acme, rival]


def test_a_key_has_an_id_and_256_random_bits(registry: Registry) -> None:
    registry.create_tenant("acme", "shared")
    keys = [registry.create_key("acme") for _ in range(5)]
    assert all(re.fullmatch(r"pk-[0-9a-f]{20}-[A-Za-z0-9_-]{43}", key) for key in keys)
    assert len({key.split("-", 2)[2] for key in keys}) == len(keys)


def test_a_key_is_in_no_file_of_the_registry(registry: Registry, registry_file: Path) -> None:
    registry.create_tenant("acme", "shared")
    key = registry.create_key("acme")
    stored = b"".join(file.read_bytes() for file in registry_file.parent.iterdir())
    registry.close()
    stored += b"".join(file.read_bytes() for file in registry_file.parent.iterdir())
    key_id, secret = key.split("-", 2)[1:]
    assert key_id.encode() in stored
    assert secret.encode() not in stored
    assert secret[:20].encode() not in stored


@pytest.mark.parametrize(
    "change",
    [
        lambda _: "",
        lambda _: "pk",
        lambda _: "pk--",
        lambda _: "sk-no-such-key",
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key + "\n",
        lambda key: " " + key,
        lambda key: key.upper(),
        lambda key: key.rsplit("-", 1)[0],
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "B"),
        lambda key: "pk-" + "0" * 20 + key[23:],
        lambda key: key[:-1] + "é",
        lambda key: key[:-1] + "\ud800",
        lambda key: key[:24] + "%" * 43,
        lambda key: "pk-" + "x" * 100_000 + key,
    ],
)
def test_any_other_text_is_refused_in_words_without_it(registry: Registry, change: object) -> None:
    assert callable(change)
    registry.create_tenant("acme", "shared")
    wrong = change(registry.create_key("acme"))
    with pytest.raises(InvalidApiKeyError, match="Incorrect API key provided") as refusal:
        registry.caller(wrong)
    assert len(wrong) < 4 or wrong not in str(refusal.value)


def test_one_key_s_secret_is_no_use_with_another_key_s_id(registry: Registry) -> None:
    for name in ("acme", "rival"):
        registry.create_tenant(name, "shared")
    mine, theirs = registry.create_key("acme"), registry.create_key("rival")
    with pytest.raises(InvalidApiKeyError):
        registry.caller(theirs[:24] + mine[24:])


def test_a_tenant_is_found_again_by_another_process_s_registry(
    registry: Registry, registry_url: str
) -> None:
    acme = registry.create_tenant("acme", "dedicated")
    other = Registry.open(registry_url)
    assert other.tenant("acme") == acme
    assert (acme.name, acme.tier) == ("acme", "dedicated")
    assert re.fullmatch(r"ten_[0-9a-f]{20}", acme.id)
    other.close()


def test_a_tenant_s_time_is_aware_and_in_utc(registry: Registry) -> None:
    registry.create_tenant("acme", "shared")
    created_at = registry.tenant("acme").created_at
    assert created_at.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - created_at) < timedelta(minutes=1)


def test_tenants_are_sorted_by_name(registry: Registry) -> None:
    for name in ("bravo", "alpha", "charlie"):
        registry.create_tenant(name, "shared")
    assert [tenant.name for tenant in registry.tenants()] == ["alpha", "bravo", "charlie"]


def test_a_tenant_s_name_is_taken_only_once(registry: Registry) -> None:
    acme = registry.create_tenant("acme", "shared")
    with pytest.raises(TenantExistsError, match="acme"):
        registry.create_tenant("acme", "reserved")
    assert registry.tenants() == [acme]


def test_a_tenant_of_a_bad_name_or_tier_is_not_made(registry: Registry) -> None:
    with pytest.raises(InvalidNameError, match="Acme Inc"):
        registry.create_tenant("Acme Inc", "shared")
    with pytest.raises(UnknownTierError, match="golden"):
        registry.create_tenant("acme", "golden")
    assert registry.tenants() == []


def test_an_unknown_tenant_has_no_key_and_gets_none(registry: Registry) -> None:
    with pytest.raises(TenantNotFoundError, match="nobody"):
        registry.create_key("nobody")
    with pytest.raises(TenantNotFoundError, match="nobody"):
        registry.tenant("nobody")


def test_tenants_and_keys_are_no_changes_to_adapters(registry: Registry) -> None:
    before = registry.change_counter()
    registry.create_tenant("acme", "shared")
    registry.create_key("acme")
    assert registry.change_counter() == before
