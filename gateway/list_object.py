"""Lists as the OpenAI API shows them, and what is told of something deleted."""

from collections.abc import Sequence
from typing import Generic, Literal, TypeAlias, TypeVar

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

EXACT = ConfigDict(extra="forbid")
"""An object of the API that has no other fields than those that its type names."""


class _Identified(TypedDict):
    id: str


Item = TypeVar("Item")
Identified = TypeVar("Identified", bound=_Identified)


@with_config(EXACT)
class PlainList(TypedDict, Generic[Item]):
    """A whole list, of things without an id."""

    object: Literal["list"]
    data: list[Item]
    has_more: Literal[False]


@with_config(EXACT)
class ListObject(TypedDict, Generic[Item]):
    """A list, or a page of one; `last_id` is what `after` takes for the next page."""

    object: Literal["list"]
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


DeletedKind: TypeAlias = Literal["adapter", "alias", "api_key", "tenant"]


@with_config(EXACT)
class DeletedObject(TypedDict):
    """Something that is no more."""

    id: str
    object: DeletedKind
    deleted: Literal[True]


def plain_list(data: Sequence[Item]) -> PlainList[Item]:
    """The list object of things without an `id`."""
    return {"object": "list", "data": list(data), "has_more": False}


def list_object(data: Sequence[Identified], *, has_more: bool = False) -> ListObject[Identified]:
    """The list object of objects that have an `id`."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def deleted_object(thing_id: str, kind: DeletedKind) -> DeletedObject:
    """What is told of a thing deleted."""
    return {"id": thing_id, "object": kind, "deleted": True}
