"""GET /v1/usage: what the tenant used, day by day."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NotRequired, cast

from anyio import to_thread
from fastapi import Request
from pydantic import with_config
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict

from adapter_sync.record import UsageBucket, UsageField
from gateway.auth import CurrentTenant
from gateway.errors import InvalidRequestError
from gateway.list_object import EXACT, PlainList, plain_list
from gateway.openapi import Answer, Operation, described
from gateway.services import CurrentServices

DEFAULT_DAYS = 30
MAX_DAYS = 366
_DEFAULT_GROUPS = (UsageField.DAY, UsageField.MODEL)
_FIELDS = "|".join(UsageField)
_PARAMETERS: tuple[Mapping[str, Any], ...] = (
    *(
        MappingProxyType(
            {
                "name": name,
                "in": "query",
                "description": f"{words} day, in UTC; {MAX_DAYS} days at most, {DEFAULT_DAYS} "
                "without.",
                "schema": {"type": "string", "format": "date"},
            }
        )
        for name, words in (("start", "The first"), ("end", "The last"))
    ),
    MappingProxyType(
        {
            "name": "group_by",
            "in": "query",
            "description": "What to tell apart, with commas between.",
            "schema": {
                "type": "string",
                "pattern": f"^({_FIELDS})(,({_FIELDS}))*$",
                "default": ",".join(_DEFAULT_GROUPS),
            },
        }
    ),
)


@with_config(EXACT)
class UsageBucketObject(TypedDict):
    """What was used by all that have these values in the fields that were grouped by."""

    object: Literal["usage.bucket"]
    day: NotRequired[date]
    model: NotRequired[str]
    adapter: NotRequired[str | None]
    key: NotRequired[str | None]
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuestion:
    """The days, first and last included, and what to tell apart."""

    start: date
    end: date
    group_by: tuple[UsageField, ...]


@described(
    Operation(
        tag="Usage",
        summary="What the tenant used",
        parameters=_PARAMETERS,
        answers={
            200: Answer(
                content={"application/json": PlainList[UsageBucketObject]},
                description="A bucket for each combination.",
            )
        },
    )
)
async def show_usage(
    request: Request, tenant: CurrentTenant, services: CurrentServices
) -> Response:
    """The tenant's own usage; what this process has not written yet counts too."""
    asked = usage_question(request.query_params, today=datetime.now(UTC).date())
    await services.usage.flush()
    buckets = await to_thread.run_sync(
        partial(
            services.registry.usage,
            tenant.id,
            first=asked.start,
            last=asked.end,
            group_by=asked.group_by,
        )
    )
    return JSONResponse(plain_list([usage_object(bucket) for bucket in buckets]))


def usage_question(parameters: Mapping[str, str], *, today: date) -> UsageQuestion:
    """Read the query. Raises InvalidRequestError, which names the parameter at fault."""
    end = _day(parameters, "end") or today
    start = _day(parameters, "start") or _days_before(end, DEFAULT_DAYS - 1)
    if start > end:
        raise _invalid("start", f"{start} is after the end, {end}")
    if (end - start).days >= MAX_DAYS:
        raise _invalid("start", f"ask for at most {MAX_DAYS} days at once")
    return UsageQuestion(start=start, end=end, group_by=_groups(parameters))


def usage_object(bucket: UsageBucket) -> UsageBucketObject:
    """A bucket as the API shows it."""
    group = {
        field.value: value.isoformat() if isinstance(value, date) else value
        for field, value in bucket.group.items()
    }
    return cast(
        "UsageBucketObject",
        {
            "object": "usage.bucket",
            **group,
            "requests": bucket.usage.requests,
            "prompt_tokens": bucket.usage.prompt_tokens,
            "completion_tokens": bucket.usage.completion_tokens,
        },
    )


def _groups(parameters: Mapping[str, str]) -> tuple[UsageField, ...]:
    words = parameters.get("group_by")
    if words is None:
        return _DEFAULT_GROUPS
    try:
        return tuple(UsageField(word.strip()) for word in words.split(","))
    except ValueError:
        known = ", ".join(UsageField)
        raise _invalid(
            "group_by", f"expected some of {known}, with commas between, but got '{words}' instead"
        ) from None


def _day(parameters: Mapping[str, str], name: str) -> date | None:
    word = parameters.get(name)
    if word is None:
        return None
    try:
        day = date.fromisoformat(word)
    except ValueError:
        day = None
    # Python also reads other forms of ISO 8601, such as weeks.
    if day is None or day.isoformat() != word:
        raise _invalid(name, f"expected a day as YYYY-MM-DD, but got '{word}' instead")
    return day


def _days_before(day: date, days: int) -> date:
    return day - timedelta(days=min(days, (day - date.min).days))


def _invalid(param: str, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"Invalid '{param}': {reason}.", param=param, code="invalid_value")
