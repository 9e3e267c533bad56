"""If-Match: which ETags a write is meant for."""

import pytest

from gateway.if_match import if_match


@pytest.mark.parametrize(
    ("headers", "etags"),
    [
        (['"a"'], {'"a"'}),
        (['"a", "b"'], {'"a"', '"b"'}),
        (['"a","b"', '"c"'], {'"a"', '"b"', '"c"'}),
        (['"a,b"'], {'"a,b"'}),
        (["*"], {"*"}),
        ([" * "], {"*"}),
    ],
)
def test_strong_etags_and_the_asterisk_are_read(headers: list[str], etags: set[str]) -> None:
    assert if_match(headers) == frozenset(etags)


def test_without_the_header_nothing_is_asked_for() -> None:
    assert if_match([]) is None


@pytest.mark.parametrize("header", ["", "a", 'W/"a"', '"a', '"*"x'])
def test_what_is_weak_or_unreadable_never_means_any(header: str) -> None:
    found = if_match([header])
    assert found is not None
    assert not found & {"*", '"a"', "a"}
