"""The question of GET /v1/usage, and its answer's form."""

from datetime import date

import pytest

from adapter_sync.record import Usage, UsageBucket, UsageField
from gateway.errors import InvalidRequestError
from gateway.usage import UsageQuestion, usage_object, usage_question

TODAY = date(2026, 3, 1)


def test_without_a_word_it_is_the_last_30_days_by_day_and_model() -> None:
    assert usage_question({}, today=TODAY) == UsageQuestion(
        start=date(2026, 1, 31), end=TODAY, group_by=(UsageField.DAY, UsageField.MODEL)
    )


def test_the_days_and_groups_are_read() -> None:
    asked = {"start": "2025-03-01", "end": "2026-03-01", "group_by": "key, adapter"}
    assert usage_question(asked, today=TODAY) == UsageQuestion(
        start=date(2025, 3, 1), end=TODAY, group_by=(UsageField.KEY, UsageField.ADAPTER)
    )


def test_the_first_days_of_the_calendar_can_be_asked_for() -> None:
    asked = usage_question({"end": "0001-01-02"}, today=TODAY)
    assert (asked.start, asked.end) == (date.min, date(1, 1, 2))


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"start": "yesterday"}, "start"),
        ({"start": ""}, "start"),
        ({"start": "2026-02-30"}, "start"),
        ({"start": "20260201"}, "start"),
        ({"end": "2026-W01-1"}, "end"),
        ({"start": "2026-03-02"}, "start"),
        ({"start": "2026-02-02", "end": "2026-02-01"}, "start"),
        ({"start": "2025-02-28"}, "start"),
        ({"group_by": ""}, "group_by"),
        ({"group_by": "day,tenant"}, "group_by"),
        ({"group_by": "day,"}, "group_by"),
    ],
)
def test_a_bad_value_is_named(asked: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        usage_question(asked, today=TODAY)
    assert (caught.value.param, caught.value.code) == (param, "invalid_value")
    assert param in str(caught.value)


def test_a_bucket_has_the_fields_that_were_grouped_by_and_no_others() -> None:
    usage = Usage(requests=1, prompt_tokens=2, completion_tokens=3)
    group = {UsageField.DAY: TODAY, UsageField.ADAPTER: None}
    assert usage_object(UsageBucket(group=group, usage=usage)) == {
        "object": "usage.bucket",
        "day": "2026-03-01",
        "adapter": None,
        "requests": 1,
        "prompt_tokens": 2,
        "completion_tokens": 3,
    }
