"""JSON as every reader of it understands it: no duplicate keys, no NaN, UTF-8 only."""

import json
from typing import NoReturn

from adapter_sync.errors import InvalidAdapterError
from adapter_sync.validation.words import quoted


class _StrictJsonError(ValueError):
    """Valid for Python's reader, but other readers differ about it."""


def parse_object(data: bytes, *, what: str, param: str) -> dict[str, object]:
    """The JSON object in `data`, `what` naming it in errors. Raises InvalidAdapterError."""
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise InvalidAdapterError(f"{what} is not valid JSON: {error}.", param=param) from error
    if not isinstance(document, dict):
        raise InvalidAdapterError(
            f"{what} holds {quoted(document)}, expected a JSON object.", param=param
        )
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            raise _StrictJsonError(f"the key {quoted(key)} is there twice")
        values[key] = value
    return values


def _no_constant(name: str) -> NoReturn:
    raise _StrictJsonError(f"{name} is not a JSON value")
