"""Error classes as OpenAPI's responses; what each looks like over HTTP is gateway.errors' word."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from inspect import getdoc
from typing import Any, TypeAlias

from adapter_sync.errors import LoraServerError
from gateway.errors import EngineRefusedError, ErrorKind, error_kind
from gateway.openapi.headers import header_objects

Kind: TypeAlias = type[LoraServerError]


def error_responses(
    classes: Iterable[Kind], envelope: dict[str, Any], always: Sequence[str], *, has_codes: bool
) -> dict[str, Any]:
    """The responses by status; `always` names headers that all have.

    `has_codes` is whether the envelope holds the codes.
    """
    by_status: defaultdict[str, list[tuple[Kind, ErrorKind]]] = defaultdict(list)
    for cls in sorted(set(classes), key=lambda each: each.__name__):
        kind = error_kind(cls)
        by_status[str(kind.status)].append((cls, kind))
        if cls is EngineRefusedError:
            # Whatever 4xx vLLM says.
            by_status["4XX"].append((cls, kind))
    return {
        status: _response(
            status, found, _schema(found, envelope) if has_codes else envelope, always
        )
        for status, found in sorted(by_status.items())
    }


def _response(
    status: str,
    found: Sequence[tuple[Kind, ErrorKind]],
    schema: dict[str, Any],
    always: Sequence[str],
) -> dict[str, Any]:
    lines = [f"- {_codes(kind)}: {_first_words(cls)}" for cls, kind in found]
    names = [set(kind.headers) for _, kind in found]
    return {
        "description": "\n".join([_title(status), "", *lines]),
        "headers": header_objects({*always, *set.intersection(*names)}, set.union(*names)),
        "content": {"application/json": {"schema": schema}},
    }


def _schema(found: Sequence[tuple[Kind, ErrorKind]], envelope: dict[str, Any]) -> dict[str, Any]:
    if any(kind.codes is None for _, kind in found):
        return envelope
    codes = {code for _, kind in found for code in kind.codes or ()}
    known = sorted(code for code in codes if code is not None)
    listed = [*known, None] if None in codes else known
    code = {"properties": {"code": {"enum": listed}}}
    return {"allOf": [envelope, {"properties": {"error": code}}]}


def _title(status: str) -> str:
    return "Another refusal" if status == "4XX" else HTTPStatus(int(status)).phrase


def _codes(kind: ErrorKind) -> str:
    if kind.codes is None:
        return "the engine's code, or null"
    return ", ".join(f"`{code}`" for code in kind.codes if code is not None)


def _first_words(cls: Kind) -> str:
    return (getdoc(cls) or cls.__name__).partition("\n\n")[0].replace("\n", " ")
