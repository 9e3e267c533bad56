"""How an adapter with its newest and serving revisions becomes rows, and comes back from one."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_, bindparam, false, func, select

from adapter_sync.record import (
    LOST_AFTER,
    UPLOADED,
    Adapter,
    AdapterStatus,
    Content,
    DesiredAdapter,
    Residency,
    Revision,
)
from adapter_sync.registry.tables import (
    UtcDateTime,
    adapters,
    change_counter,
    nodes,
    residencies,
    revisions,
)

_SERVING = "serving_"
_serving = revisions.alias("serving")
_NOT_CONTENT = ("adapter_id", "created_at")

_IN_ENGINE = ("digest", "config_blob", "weights_blob", "rank")


_is_newest = and_(
    revisions.c.adapter_id == adapters.c.id,
    revisions.c.number == adapters.c.revision_number,
)
_is_serving = and_(
    _serving.c.adapter_id == adapters.c.id,
    _serving.c.number == adapters.c.serving_revision,
)


def _alive_since() -> datetime:
    return datetime.now(UTC) - LOST_AFTER


# The best of the nodes that are there: "gpu" comes after "cpu" in the alphabet.
_best_residency = (
    select(func.max(residencies.c.residency))
    .join(nodes, nodes.c.id == residencies.c.node_id)
    .where(
        residencies.c.adapter_id == adapters.c.id,
        nodes.c.heartbeat_at >= bindparam("alive_since", callable_=_alive_since, type_=UtcDateTime),
    )
    .correlate(adapters)
    .scalar_subquery()
)

SELECT_ADAPTERS = (
    select(
        adapters,
        *(column for column in revisions.c if column.name not in _NOT_CONTENT),
        *(
            column.label(f"{_SERVING}{column.name}")
            for column in _serving.c
            if column.name not in _NOT_CONTENT
        ),
        _best_residency.label("best_residency"),
    )
    .join(revisions, _is_newest)
    .outerjoin(_serving, _is_serving)
)

_serves_newest = adapters.c.serving_revision == adapters.c.revision_number

# The second revision is looked up only where it is another one.
SELECT_DESIRED = (
    select(
        adapters.c.id,
        adapters.c.name,
        adapters.c.status,
        func.coalesce(_serves_newest, false()),
        *(revisions.c[name] for name in _IN_ENGINE),
        *(_serving.c[name] for name in _IN_ENGINE),
    )
    .join(revisions, _is_newest)
    .outerjoin(_serving, and_(_is_serving, ~_serves_newest))
)


def adapter_values(adapter: Adapter) -> dict[str, object]:
    """The adapter's row, changed in the transaction that counted as a change."""
    return {
        "id": adapter.id,
        "tenant_id": adapter.tenant_id,
        "base_model": adapter.base_model,
        "name": adapter.name,
        "revision_number": adapter.revision.number,
        "serving_revision": None if adapter.serving is None else adapter.serving.number,
        "status": adapter.status.value,
        "error_code": adapter.error_code,
        "error_message": adapter.error_message,
        "created_at": adapter.created_at,
        "updated_at": adapter.updated_at,
        "changed_in": select(change_counter.c.value).scalar_subquery(),
    }


def revision_values(adapter: Adapter) -> dict[str, object]:
    """The row of the adapter's newest revision, made when the adapter was changed last."""
    revision = adapter.revision
    return {
        "adapter_id": adapter.id,
        "number": revision.number,
        "digest": revision.digest,
        "config_blob": revision.config_blob,
        "weights_blob": revision.weights_blob,
        "size_bytes": revision.size_bytes,
        "rank": revision.rank,
        "lora_alpha": revision.lora_alpha,
        "target_modules": list(revision.target_modules),
        "warnings": list(revision.warnings),
        "source": dict(revision.source),
        "created_at": adapter.updated_at,
    }


def adapter_of(row: Row[tuple[object, ...]]) -> Adapter:
    """The adapter in a row of SELECT_ADAPTERS."""
    return Adapter(
        id=row.id,
        tenant_id=row.tenant_id,
        name=row.name,
        base_model=row.base_model,
        status=AdapterStatus(row.status),
        error_code=row.error_code,
        error_message=row.error_message,
        revision=revision_of(row),
        created_at=row.created_at,
        updated_at=row.updated_at,
        serving=None if row.serving_number is None else revision_of(row, _SERVING),
        last_used_at=row.last_used_at,
        residency=None
        if row.serving_number is None
        else Residency(row.best_residency or Residency.DISK),
    )


def desired_of(row: Row[Any]) -> DesiredAdapter:
    """The adapter in a row of SELECT_DESIRED."""
    adapter_id, name, status, serves_newest, *contents = row
    newest, other = _content_of(*contents[:4]), contents[4:]
    serving = None if other[0] is None else _content_of(*other)
    return DesiredAdapter(
        id=adapter_id,
        name=name,
        status=AdapterStatus(status),
        newest=newest,
        serving=newest if serves_newest else serving,
    )


def _content_of(digest: str, config_blob: str, weights_blob: str, rank: int) -> Content:
    return Content(digest=digest, config_blob=config_blob, weights_blob=weights_blob, rank=rank)


def revision_of(row: Row[tuple[object, ...]], prefix: str = "") -> Revision:
    """The revision in a row whose columns have the prefix before their names."""

    def value(name: str) -> Any:
        return getattr(row, f"{prefix}{name}")

    return Revision(
        number=value("number"),
        digest=value("digest"),
        config_blob=value("config_blob"),
        weights_blob=value("weights_blob"),
        size_bytes=value("size_bytes"),
        rank=value("rank"),
        lora_alpha=value("lora_alpha"),
        target_modules=tuple(value("target_modules")),
        warnings=tuple(value("warnings")),
        source=value("source") or UPLOADED,
    )
