"""What the gateway reads from request headers and paths."""

from dataclasses import replace

import pytest

from adapter_sync.errors import AdapterTooLargeError, InvalidApiKeyError
from adapter_sync.tiers import load_tiers
from gateway.auth import bearer_key, needs_admin_key, needs_key
from gateway.limits import Limits
from gateway.loading import preferred_wait_s
from gateway.request_id import accepted_request_id
from gateway.upload import check_announced_size

TIER = replace(load_tiers().named("shared"), max_adapter_bytes=10_000_000)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_bearer_key_is_read(scheme: str) -> None:
    assert bearer_key([f"{scheme} pk-1"]) == "pk-1"


@pytest.mark.parametrize(
    "headers", [[], [""], ["Bearer"], ["Bearer  "], ["pk-1"], ["Basic pk-1"], ["Bearer a"] * 2]
)
def test_anything_else_is_no_key(headers: list[str]) -> None:
    with pytest.raises(InvalidApiKeyError):
        bearer_key(headers)


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/v1/models", "/v1/../health/live"])
def test_everything_below_v1_needs_a_key(path: str) -> None:
    assert needs_key(path)


@pytest.mark.parametrize("path", ["/", "/health/live", "/v1x", "/V1/models", "/admin/v1"])
def test_nothing_else_does(path: str) -> None:
    assert not needs_key(path)


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/v1/tenants"])
def test_everything_below_admin_needs_the_admin_key(path: str) -> None:
    assert needs_admin_key(path)


@pytest.mark.parametrize("path", ["/", "/health/live", "/v1/admin", "/administrator"])
def test_nothing_else_needs_the_admin_key(path: str) -> None:
    assert not needs_admin_key(path)


@pytest.mark.parametrize("offered", ["a", "A-b_c.1", "x" * 128])
def test_a_clients_valid_request_id_is_kept(offered: str) -> None:
    assert accepted_request_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "a b", "x" * 129, "é", "a\n", "a/b"])
def test_any_other_request_id_is_replaced(offered: str | None) -> None:
    request_id = accepted_request_id(offered)
    assert len(request_id) == 32
    assert request_id.isalnum()


@pytest.mark.parametrize(
    ("prefer", "wait_s"),
    [
        ([], 5),
        (["wait=0"], 0),
        (["wait=60"], 60),
        (["wait=61"], 60),
        (["respond-async, Wait=7"], 7),
        (["respond-async", 'wait="7"; x=y'], 7),
        (["wait=-1"], 5),
        (["wait=soon"], 5),
        (["await=7"], 5),
    ],
)
def test_the_preferred_wait_is_read(prefer: list[str], wait_s: int) -> None:
    assert preferred_wait_s(prefer, Limits()) == wait_s


def test_a_length_that_cannot_fit_is_refused_before_the_first_byte() -> None:
    limits = Limits()
    most = TIER.max_adapter_bytes + limits.max_config_bytes + limits.max_form_overhead_bytes
    check_announced_size(None, TIER, limits)
    check_announced_size(most, TIER, limits)
    with pytest.raises(AdapterTooLargeError):
        check_announced_size(most + 1, TIER, limits)
