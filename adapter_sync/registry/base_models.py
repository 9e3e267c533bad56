"""Base models and their reservations, inside a transaction of the caller."""

from collections.abc import Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    delete,
    exists,
    insert,
    or_,
    select,
    true,
    update,
)

from adapter_sync.errors import AdaptersNotSupportedError, BaseModelNotFoundError
from adapter_sync.record import BaseModel
from adapter_sync.registry.tables import base_models, reservations


def upsert_base_model(connection: Connection, base: BaseModel) -> bool:
    """Whether the stored one was another or none. Its reservation is left as it is."""
    of_name = base_models.c.name == base.name
    row = connection.execute(select(base_models).where(of_name)).first()
    if row is not None and _base_model(row, base.reserved_for) == base:
        return False
    statement = insert(base_models) if row is None else update(base_models).where(of_name)
    connection.execute(
        statement.values(
            name=base.name,
            max_lora_rank=base.max_lora_rank,
            max_model_len=base.max_model_len,
            tensor_shapes={name: list(shape) for name, shape in base.tensor_shapes.items()},
            takes_adapters=base.takes_adapters,
        )
    )
    return True


def select_base_models(connection: Connection) -> list[BaseModel]:
    """Every base model, sorted by name."""
    query = select(base_models).order_by(base_models.c.name)
    return [
        _base_model(row, select_reservation(connection, row.name))
        for row in connection.execute(query)
    ]


def select_base_model(connection: Connection, name: str) -> BaseModel:
    """Raises BaseModelNotFoundError."""
    row = connection.execute(select(base_models).where(base_models.c.name == name)).first()
    if row is None:
        raise BaseModelNotFoundError(base_model=name, known=_names(connection, true()))
    return _base_model(row, select_reservation(connection, name))


def select_base_model_for_adapters(connection: Connection, name: str, tenant_id: str) -> BaseModel:
    """Raises BaseModelNotFoundError, AdaptersNotSupportedError."""
    require_base_model_for_adapters(connection, name, tenant_id)
    return select_base_model(connection, name)


def require_base_model_for_adapters(connection: Connection, name: str, tenant_id: str) -> None:
    """Raises BaseModelNotFoundError, also when it is others', and AdaptersNotSupportedError."""
    is_there = _is_for(tenant_id)
    query = select(base_models.c.takes_adapters).where(base_models.c.name == name, is_there)
    takes_adapters = connection.scalar(query)
    if takes_adapters is None:
        raise BaseModelNotFoundError(base_model=name, known=_names(connection, is_there))
    if not takes_adapters:
        taking = select(base_models.c.name).where(base_models.c.takes_adapters, is_there)
        raise AdaptersNotSupportedError(base_model=name, taking=list(connection.scalars(taking)))


def is_base_model(connection: Connection, name: str, tenant_id: str) -> bool:
    """Whether there is one of that name for the tenant."""
    query = select(base_models.c.name).where(base_models.c.name == name, _is_for(tenant_id))
    return connection.scalar(query) is not None


def delete_base_model(connection: Connection, name: str) -> bool:
    """Whether there was one."""
    deleted = connection.execute(delete(base_models).where(base_models.c.name == name))
    return deleted.rowcount > 0


def select_reservation(connection: Connection, name: str) -> frozenset[str] | None:
    """The ids of the tenants that it is reserved to, None when it is for all."""
    of_name = select(reservations.c.tenant_id).where(reservations.c.base_model == name)
    return frozenset(connection.scalars(of_name)) or None


def replace_reservation(connection: Connection, name: str, tenant_ids: Sequence[str]) -> None:
    """Reserve it to these tenants alone; without any it is for all."""
    connection.execute(delete(reservations).where(reservations.c.base_model == name))
    rows = [{"base_model": name, "tenant_id": each} for each in tenant_ids]
    if rows:
        connection.execute(insert(reservations), rows)


def _is_for(tenant_id: str) -> ColumnElement[bool]:
    of_base = reservations.c.base_model == base_models.c.name
    return or_(
        ~exists().where(of_base),
        exists().where(of_base, reservations.c.tenant_id == tenant_id),
    )


def _names(connection: Connection, where: ColumnElement[bool]) -> list[str]:
    return list(connection.scalars(select(base_models.c.name).where(where)))


def _base_model(row: Row[tuple[object, ...]], reserved_for: frozenset[str] | None) -> BaseModel:
    return BaseModel(
        name=row.name,
        max_lora_rank=row.max_lora_rank,
        max_model_len=row.max_model_len,
        tensor_shapes={name: tuple(shape) for name, shape in row.tensor_shapes.items()},
        takes_adapters=row.takes_adapters,
        reserved_for=reserved_for,
    )
