"""What the reconciler is to see of an adapter."""

from adapter_sync.record import Adapter, Content, DesiredAdapter, Revision


def content_of(revision: Revision) -> Content:
    return Content(
        digest=revision.digest,
        config_blob=revision.config_blob,
        weights_blob=revision.weights_blob,
        rank=revision.rank,
    )


def desired_of(adapter: Adapter) -> DesiredAdapter:
    return DesiredAdapter(
        id=adapter.id,
        name=adapter.name,
        status=adapter.status,
        newest=content_of(adapter.revision),
        serving=None if adapter.serving is None else content_of(adapter.serving),
    )
