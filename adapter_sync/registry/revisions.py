"""An adapter's revisions after its first, inside a transaction of the caller.

The writing functions count on Database.writing: what they read stays true until they commit.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, and_, delete, insert, select, union, update

from adapter_sync.errors import (
    NoEarlierRevisionError,
    PreconditionFailedError,
    RevisionNotFoundError,
)
from adapter_sync.record import Adapter, AdapterStatus, KeptRevision, Revision
from adapter_sync.registry.adapter_rows import adapter_values, revision_of, revision_values
from adapter_sync.registry.tables import adapters, revisions

KEPT_REVISIONS = 3
_ANY_ETAG = "*"
_DIGESTS_A_QUERY = 400
"""Each is two of a statement's parameters, of which SQLite before 3.32 takes 999."""


def require_match(if_match: frozenset[str] | None, adapter: Adapter | None) -> None:
    """Raises PreconditionFailedError when the adapter has none of the ETags, or isn't there."""
    if if_match is None:
        return
    if adapter is None or not if_match & {adapter.etag, _ANY_ETAG}:
        raise PreconditionFailedError


def insert_revision(connection: Connection, adapter: Adapter, content: Revision) -> Adapter:
    """The adapter with that content as its newest revision.

    It is loading, unless it has the content that serves already: that is ready.
    """
    changed = replace(with_revision(adapter, content), updated_at=datetime.now(UTC))
    connection.execute(insert(revisions).values(revision_values(changed)))
    connection.execute(
        update(adapters).where(adapters.c.id == adapter.id).values(adapter_values(changed))
    )
    return changed


def with_revision(adapter: Adapter, content: Revision) -> Adapter:
    """The adapter after such an insertion."""
    revision = replace(content, number=adapter.revision.number + 1)
    serves = adapter.serving is not None and adapter.serving.digest == revision.digest
    return replace(
        adapter,
        revision=revision,
        serving=revision if serves else adapter.serving,
        status=AdapterStatus.READY if serves else AdapterStatus.LOADING,
        error_code=None,
        error_message=None,
    )


def select_revisions(connection: Connection, adapter: Adapter) -> list[KeptRevision]:
    """The revisions kept, newest first."""
    query = select(revisions).where(revisions.c.adapter_id == adapter.id)
    serving = None if adapter.serving is None else adapter.serving.number
    return [
        KeptRevision(
            revision=(revision := revision_of(row)),
            etag=adapter.etag_of(revision),
            created_at=row.created_at,
            serving=revision.number == serving,
        )
        for row in connection.execute(query.order_by(revisions.c.number.desc()))
    ]


def earlier_revision(connection: Connection, adapter: Adapter, number: int | None) -> Revision:
    """The revision of that number; without one, the one before the newest.

    Raises RevisionNotFoundError, NoEarlierRevisionError.
    """
    kept = {each.revision.number: each.revision for each in select_revisions(connection, adapter)}
    newest = adapter.revision.number
    if number is None:
        number = max((each for each in kept if each < newest), default=None)
    if number is None:
        raise NoEarlierRevisionError(adapter_id=adapter.id, number=newest)
    if number not in kept:
        raise RevisionNotFoundError(number=number, kept=list(kept))
    return kept[number]


def prune_revisions(connection: Connection, adapter_id: str) -> list[str] | None:
    """Remove all but the newest revisions and the serving one; as delete_revisions.

    None when there is nothing to remove.
    """
    row = connection.execute(
        select(adapters.c.revision_number, adapters.c.serving_revision).where(
            adapters.c.id == adapter_id
        )
    ).first()
    if row is None:
        return None
    old = and_(
        revisions.c.adapter_id == adapter_id,
        revisions.c.number <= row.revision_number - KEPT_REVISIONS,
        revisions.c.number != (row.serving_revision or 0),
    )
    if connection.scalar(select(revisions.c.number).where(old).limit(1)) is None:
        return None
    return delete_revisions(connection, old)


def delete_revisions(connection: Connection, where: ColumnElement[bool]) -> list[str]:
    """Remove revisions; the digests of the blobs that no other one uses, sorted."""
    query = select(revisions.c.config_blob, revisions.c.weights_blob).where(where)
    digests = {digest for row in connection.execute(query) for digest in row}
    connection.execute(delete(revisions).where(where))
    return unused_blobs(connection, sorted(digests))


def contents_with_blob(connection: Connection, digest: str) -> list[tuple[str, str]]:
    """The adapter's id and the content's digest of each revision that has the blob; sorted."""
    query = select(revisions.c.adapter_id, revisions.c.digest).where(
        (revisions.c.config_blob == digest) | (revisions.c.weights_blob == digest)
    )
    return sorted({(row.adapter_id, row.digest) for row in connection.execute(query)})


def unused_blobs(connection: Connection, digests: Sequence[str]) -> list[str]:
    """Those of the blobs that no revision has as its config or its weights."""
    used: set[str] = set()
    for start in range(0, len(digests), _DIGESTS_A_QUERY):
        asked = digests[start : start + _DIGESTS_A_QUERY]
        queries = (
            select(column).where(column.in_(asked))
            for column in (revisions.c.config_blob, revisions.c.weights_blob)
        )
        used.update(connection.scalars(union(*queries)))
    return [digest for digest in digests if digest not in used]
