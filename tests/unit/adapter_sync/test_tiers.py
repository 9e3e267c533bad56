"""The tiers file: what it may hold, and what is said of one that holds anything else."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapter_sync.errors import ConfigurationError, TierMissingError, UnknownTierError
from adapter_sync.record import Tenant
from adapter_sync.tiers import Tier, load_tiers

GOLD = """\
[gold]
max_adapters = 0
max_adapter_bytes = 1_000
requests_per_minute = 2
tokens_per_minute = 3
max_streams = 4
"""


def tiers_file(folder: Path, text: str) -> Path:
    file = folder / "tiers.toml"
    file.write_text(text)
    return file


def test_the_built_in_tiers_are_the_promised_ones() -> None:
    tiers = load_tiers()
    assert tiers.names == ["dedicated", "reserved", "shared"]
    promised = {
        name: (tiers.named(name).max_adapters, tiers.named(name).max_adapter_bytes)
        for name in tiers.names
    }
    assert promised == {
        "shared": (20, 500_000_000),
        "reserved": (200, 500_000_000),
        "dedicated": (200, 500_000_000),
    }


@pytest.mark.parametrize(
    "limit", ["requests_per_minute", "tokens_per_minute", "max_streams", "weight"]
)
def test_a_higher_built_in_tier_allows_more(limit: str) -> None:
    tiers = load_tiers()
    shared, reserved, dedicated = (
        getattr(tiers.named(name), limit) for name in ("shared", "reserved", "dedicated")
    )
    assert 0 < shared < reserved < dedicated


def test_a_file_replaces_the_built_in_tiers_as_a_whole(tmp_path: Path) -> None:
    tiers = load_tiers(tiers_file(tmp_path, GOLD))
    assert tiers.named("gold") == Tier(
        name="gold",
        max_adapters=0,
        max_adapter_bytes=1_000,
        requests_per_minute=2,
        tokens_per_minute=3,
        max_streams=4,
        weight=1,
    )
    with pytest.raises(UnknownTierError, match=r"no tier 'shared'\. The tiers are: gold\."):
        tiers.named("shared")


def test_a_tier_may_say_its_weight(tmp_path: Path) -> None:
    tiers = load_tiers(tiers_file(tmp_path, f"{GOLD}weight = 7\n"))
    assert tiers.named("gold").weight == 7


def test_a_tenant_whose_tier_is_gone_is_told_so(tmp_path: Path) -> None:
    tiers = load_tiers(tiers_file(tmp_path, GOLD))
    tenant = Tenant(id="ten_1", name="acme", tier="shared", created_at=datetime.now(UTC))
    with pytest.raises(TierMissingError, match="'shared' is not configured"):
        tiers.of(tenant)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "wrong"),
        ("gold = 1", "gold: "),
        ("[gold]\nmax_adapters = 1", "gold.max_adapter_bytes: Field required"),
        (f"{GOLD}max_streems = 1", "gold.max_streems: Extra"),
        (GOLD.replace("= 4", "= 0"), "gold.max_streams: Input should be greater than 0"),
        (f"{GOLD}weight = 0", "gold.weight: Input should be greater than 0"),
        (GOLD.replace("= 0", "= -1"), "gold.max_adapters: Input should be greater"),
        (GOLD.replace("= 3", "= true"), "gold.tokens_per_minute: Input should be a valid integer"),
        (GOLD.replace("= 3", '= "3"'), "gold.tokens_per_minute: Input should be a valid integer"),
        (GOLD.replace("= 3", "= 3.5"), "gold.tokens_per_minute: Input should be a valid integer"),
        (GOLD.replace("[gold]", "[GOLD]"), "GOLD.[key]: String should match"),
        (GOLD.replace("[gold]", f"[{'g' * 33}]"), "String should match"),
        (GOLD + GOLD, "is no TOML"),
        ("[gold", "is no TOML"),
    ],
)
def test_a_wrong_file_is_refused_naming_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    file = tiers_file(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_tiers(file)
    assert str(file) in str(caught.value)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"missing\.toml can't be read: No such file"):
        load_tiers(tmp_path / "missing.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is no TOML"):
        load_tiers(tmp_path / "bytes.toml")
