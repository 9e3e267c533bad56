"""How foreign values are put into error messages."""

from collections.abc import Iterable

_LONGEST = 160


def quoted(value: object) -> str:
    """The value as short ASCII: a lone surrogate would break the response, a long one the log."""
    text = ascii(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def listed(values: Iterable[object], *, at_most: int = 5) -> str:
    """The values, quoted, in their order, the first few of them."""
    texts = [quoted(value) for value in values]
    more = len(texts) - at_most
    return ", ".join(texts[:at_most]) + (f" and {more} more" if more > 0 else "")
