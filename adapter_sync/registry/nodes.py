"""Nodes, and where in their engines the adapters are; inside a transaction of the caller."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta

from sqlalchemy import Connection, Row, and_, delete, insert, select, update

from adapter_sync.record import Node, NodeBaseModel, Residency
from adapter_sync.registry.tables import adapters, nodes, residencies

_NODES_KEPT = timedelta(days=7)


def upsert_node(connection: Connection, node: Node) -> None:
    """Write the node's row; those of nodes that are long gone may go when a new one comes."""
    values = {**asdict(node), "base_models": [asdict(base) for base in node.base_models]}
    is_node = nodes.c.id == node.id
    if connection.execute(update(nodes).where(is_node).values(values)).rowcount > 0:
        return
    connection.execute(delete(nodes).where(nodes.c.heartbeat_at < node.heartbeat_at - _NODES_KEPT))
    connection.execute(insert(nodes).values(values))


def select_nodes(connection: Connection) -> list[Node]:
    """Every node, sorted by host and id."""
    query = select(nodes).order_by(nodes.c.host, nodes.c.id)
    return [_node(row) for row in connection.execute(query)]


def select_residencies(
    connection: Connection, *, node_id: str, base_model: str
) -> dict[str, Residency]:
    """The base model's adapters that the node has nearer than on its disk, by id."""
    query = (
        select(residencies.c.adapter_id, residencies.c.residency)
        .join(adapters, adapters.c.id == residencies.c.adapter_id)
        .where(residencies.c.node_id == node_id, adapters.c.base_model == base_model)
    )
    return {row.adapter_id: Residency(row.residency) for row in connection.execute(query)}


def change_residencies(
    connection: Connection, node_id: str, changes: Mapping[str, Residency]
) -> None:
    """Write these adapters' rows; an adapter that is gone since then has none."""
    of_node = residencies.c.node_id == node_id
    changed = residencies.c.adapter_id.in_(changes)
    connection.execute(delete(residencies).where(and_(of_node, changed)))
    there = connection.scalars(select(adapters.c.id).where(adapters.c.id.in_(changes)))
    rows = [
        {"node_id": node_id, "adapter_id": adapter_id, "residency": changes[adapter_id].value}
        for adapter_id in there
        if changes[adapter_id] is not Residency.DISK
    ]
    if rows:
        connection.execute(insert(residencies), rows)


def _node(row: Row[tuple[object, ...]]) -> Node:
    return Node(
        id=row.id,
        host=row.host,
        triton=row.triton,
        version=row.version,
        base_models=tuple(NodeBaseModel(**base) for base in row.base_models),
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
    )
