"""What the document says of the ways in which an adapter comes here: the same for all of them."""

from collections.abc import Mapping

from adapter_sync.errors import (
    AdapterExistsError,
    AdapterLimitError,
    AdapterNotFoundError,
    AdaptersNotSupportedError,
    AdapterTooLargeError,
    BaseModelNotFoundError,
    InvalidAdapterError,
    InvalidNameError,
    PreconditionFailedError,
    TenantNotFoundError,
    TierMissingError,
)
from gateway.adapter_object import ADAPTER_ANSWER, ADAPTER_LINKS
from gateway.openapi import Answer

NEW_ADAPTER_ERRORS = (
    AdapterExistsError,
    AdapterLimitError,
    AdapterNotFoundError,
    AdapterTooLargeError,
    AdaptersNotSupportedError,
    BaseModelNotFoundError,
    InvalidAdapterError,
    InvalidNameError,
    PreconditionFailedError,
    TenantNotFoundError,
    TierMissingError,
)


def new_adapter_answers(words: Mapping[int, str]) -> Mapping[int, Answer]:
    """The adapter object, and where it is, with these descriptions by status."""
    return {
        status: Answer(
            content=ADAPTER_ANSWER,
            description=description,
            headers=("location",),
            optional_headers=("etag",),
            links=ADAPTER_LINKS,
        )
        for status, description in words.items()
    }
