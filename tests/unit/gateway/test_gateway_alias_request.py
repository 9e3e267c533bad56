"""The body of PUT /v1/aliases/{alias}."""

import json

import pytest

from gateway.alias_request import MAX_TARGETS, MAX_WEIGHT, RequestedTarget, parse_alias_request
from gateway.errors import InvalidRequestError


def _targets(*weights: object) -> dict[str, object]:
    return {"targets": [{"model": f"m{n}", "weight": each} for n, each in enumerate(weights)]}


def test_one_model_has_the_whole_weight() -> None:
    assert parse_alias_request(b'{"model": "tiny:finance"}') == [
        RequestedTarget(requested_model="tiny:finance", weight=1)
    ]


def test_several_models_have_theirs() -> None:
    assert parse_alias_request(json.dumps(_targets(90, MAX_WEIGHT)).encode()) == [
        RequestedTarget(requested_model="m0", weight=90),
        RequestedTarget(requested_model="m1", weight=MAX_WEIGHT),
    ]
    assert len(parse_alias_request(json.dumps(_targets(*[1] * MAX_TARGETS)).encode())) == 16


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ("{", None, "invalid_value"),
        ([], None, "invalid_value"),
        ('{"model": "\\ud800"}', None, "invalid_value"),
        ({}, "model", "missing_required_parameter"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"model": 7}, "model", "invalid_value"),
        ({"model": "m", "alias": "a"}, "alias", "unknown_parameter"),
        ({"model": "m", **_targets(1)}, "targets", "invalid_value"),
        ({"targets": []}, "targets", "invalid_value"),
        ({"targets": ["m"]}, "targets[0]", "invalid_value"),
        ({"targets": [{"model": "m"}]}, "targets[0].weight", "missing_required_parameter"),
        ({"targets": [{"weight": 1}]}, "targets[0].model", "missing_required_parameter"),
        (_targets(1, 0), "targets[1].weight", "invalid_value"),
        (_targets(-1), "targets[0].weight", "invalid_value"),
        (_targets(0.5), "targets[0].weight", "invalid_value"),
        (_targets(1.0), "targets[0].weight", "invalid_value"),
        (_targets("1"), "targets[0].weight", "invalid_value"),
        ({"targets": [{"model": "m", "weight": True}]}, "targets[0].weight", "invalid_value"),
        (_targets(MAX_WEIGHT + 1), "targets[0].weight", "invalid_value"),
        (_targets(10**400), "targets[0].weight", "invalid_value"),
        (_targets(*[1] * (MAX_TARGETS + 1)), "targets", "invalid_value"),
        ({"targets": [{"model": "m", "weight": 1}] * 2}, "targets[1].model", "invalid_value"),
    ],
)
def test_a_body_that_is_wrong_is_refused_by_its_field(
    body: object, param: str | None, code: str
) -> None:
    raw = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(InvalidRequestError) as refusal:
        parse_alias_request(raw.encode())
    assert (refusal.value.param, refusal.value.code) == (param, code)
