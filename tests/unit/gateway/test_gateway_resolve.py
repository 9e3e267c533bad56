"""A client's `model` becomes a base model and perhaps an adapter."""

from datetime import UTC, datetime

import pytest

from adapter_sync.errors import LoraServerError
from adapter_sync.record import Adapter, AdapterStatus, Revision
from gateway.errors import AdapterFailedError, AdapterNotReadyError, ModelNotFoundError
from gateway.resolve import servable, split_requested_model

BASE_MODELS = ["tiny", "org/Llama-3.1-8B", "odd:one"]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _revision(number: int = 1, digest: str = "0123456789abcdef" * 4) -> Revision:
    return Revision(
        number=number,
        digest=digest,
        config_blob="c" * 64,
        weights_blob="d" * 64,
        size_bytes=10,
        rank=8,
        lora_alpha=16,
        target_modules=("q_proj",),
        warnings=(),
    )


def _adapter(
    status: AdapterStatus, error_message: str | None = None, serving: Revision | None = None
) -> Adapter:
    return Adapter(
        id="adp_0123456789abcdefghij",
        tenant_id="ten_1",
        name="finance",
        base_model="tiny",
        status=status,
        error_code=None,
        error_message=error_message,
        revision=_revision(),
        created_at=NOW,
        updated_at=NOW,
        serving=_revision() if status is AdapterStatus.READY else serving,
    )


@pytest.mark.parametrize(
    ("requested_model", "expected"),
    [
        ("tiny", ("tiny", None)),
        ("tiny:finance", ("tiny", "finance")),
        ("tiny:Finance_v1.2-b", ("tiny", "Finance_v1.2-b")),
        ("org/Llama-3.1-8B", ("org/Llama-3.1-8B", None)),
        ("org/Llama-3.1-8B:finance", ("org/Llama-3.1-8B", "finance")),
        ("odd:one", ("odd:one", None)),
        ("odd:one:finance", ("odd:one", "finance")),
    ],
)
def test_a_known_base_model_is_split_from_the_adapter(
    requested_model: str, expected: tuple[str, str | None]
) -> None:
    assert split_requested_model(requested_model, BASE_MODELS) == expected


@pytest.mark.parametrize(
    "requested_model",
    [
        "",
        ":",
        "tin",
        "Tiny",
        "tiny:",
        ":finance",
        "tiny:a:b",
        "tiny:a/b",
        "tiny: finance",
        "org",
        "org/Llama-3",
        "odd",
        "tiny:\ud800",
        "tiny:a\0",
    ],
)
def test_anything_else_is_not_found_in_the_same_words(requested_model: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        split_requested_model(requested_model, BASE_MODELS)
    expected = f"The model `{requested_model}` does not exist or you do not have access to it."
    assert str(caught.value) == expected


def test_a_ready_adapter_is_asked_for_by_its_identity() -> None:
    target = servable(_adapter(AdapterStatus.READY), "tiny:finance")
    assert target.base_model == "tiny"
    assert target.lora_name == "adp_0123456789abcdefghij@0123456789abcdef"


@pytest.mark.parametrize("status", [AdapterStatus.LOADING, AdapterStatus.FAILED])
def test_an_earlier_revision_answers_until_a_newer_one_is_ready(status: AdapterStatus) -> None:
    adapter = _adapter(status, serving=_revision(1, "fedcba9876543210" * 4))
    target = servable(adapter, "tiny:finance")
    assert target.lora_name == "adp_0123456789abcdefghij@fedcba9876543210"


def test_of_a_deleted_adapter_nothing_answers() -> None:
    adapter = _adapter(AdapterStatus.DELETING, serving=_revision())
    with pytest.raises(ModelNotFoundError):
        servable(adapter, "tiny:finance")


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (AdapterStatus.LOADING, AdapterNotReadyError),
        (AdapterStatus.FAILED, AdapterFailedError),
        (AdapterStatus.DELETING, ModelNotFoundError),
    ],
)
def test_an_adapter_that_is_not_ready_is_refused(
    status: AdapterStatus, cls: type[LoraServerError]
) -> None:
    with pytest.raises(cls):
        servable(_adapter(status), "tiny:finance")


def test_a_failed_adapter_says_why_without_the_servers_own_names() -> None:
    adapter = _adapter(
        AdapterStatus.FAILED, "adp_0123456789abcdefghij@0123456789abcdef: bad /srv/x/y"
    )
    with pytest.raises(AdapterFailedError) as caught:
        servable(adapter, "tiny:finance")
    assert str(caught.value).endswith("could not be loaded: tiny:finance: bad …")
