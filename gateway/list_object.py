"""Lists as the OpenAI API shows them."""

from collections.abc import Sequence
from typing import Any


def list_object(data: Sequence[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    """The list object of objects that have an `id`."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
