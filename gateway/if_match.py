"""The If-Match header (RFC 9110, 13.1.1): a write only to the state that its sender has seen."""

import re
from collections.abc import Sequence

_ETAG = re.compile(r'(W/)?("[^"]*")')
ANY = "*"


def if_match(headers: Sequence[str]) -> frozenset[str] | None:
    """The strong ETags that the headers name, `*` for any; None when there is no header.

    What can't be read matches nothing, as a weak ETag does.
    """
    if not headers:
        return None
    text = ",".join(headers)
    if text.strip() == ANY:
        return frozenset({ANY})
    return frozenset(etag for weak, etag in _ETAG.findall(text) if not weak)
