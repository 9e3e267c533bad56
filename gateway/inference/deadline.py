"""How long a request may take in all: the client's word in a header, within the server's limit."""

import math

from starlette.datastructures import Headers

from gateway.errors import InvalidRequestError
from gateway.limits import Limits

REQUEST_TIMEOUT_HEADER = "x-request-timeout"


def request_deadline_s(headers: Headers, limits: Limits) -> float:
    """The seconds of `x-request-timeout`, at most the limit; the limit without it.

    Raises InvalidRequestError for what is not a positive number.
    """
    asked = headers.get(REQUEST_TIMEOUT_HEADER)
    if asked is None:
        return limits.request_timeout_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise InvalidRequestError(
            f"Invalid '{REQUEST_TIMEOUT_HEADER}': expected seconds, a number above 0, but got "
            f"'{asked}' instead.",
            param=REQUEST_TIMEOUT_HEADER,
            code="invalid_value",
        )
    return min(seconds, limits.request_timeout_s)
