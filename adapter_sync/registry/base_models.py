"""Base models, inside a transaction of the caller."""

from sqlalchemy import Connection, Row, delete, insert, select, update

from adapter_sync.errors import AdaptersNotSupportedError, BaseModelNotFoundError
from adapter_sync.record import BaseModel
from adapter_sync.registry.tables import base_models


def upsert_base_model(connection: Connection, base: BaseModel) -> bool:
    """Whether the stored one was another or none."""
    of_name = base_models.c.name == base.name
    row = connection.execute(select(base_models).where(of_name)).first()
    if row is not None and _base_model(row) == base:
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
    return [_base_model(row) for row in connection.execute(query)]


def select_base_model(connection: Connection, name: str) -> BaseModel:
    """Raises BaseModelNotFoundError."""
    row = connection.execute(select(base_models).where(base_models.c.name == name)).first()
    if row is None:
        raise BaseModelNotFoundError(base_model=name, known=_names(connection))
    return _base_model(row)


def select_base_model_for_adapters(connection: Connection, name: str) -> BaseModel:
    """Raises BaseModelNotFoundError, AdaptersNotSupportedError."""
    require_base_model_for_adapters(connection, name)
    return select_base_model(connection, name)


def require_base_model_for_adapters(connection: Connection, name: str) -> None:
    """Raises BaseModelNotFoundError, AdaptersNotSupportedError."""
    query = select(base_models.c.takes_adapters).where(base_models.c.name == name)
    takes_adapters = connection.scalar(query)
    if takes_adapters is None:
        raise BaseModelNotFoundError(base_model=name, known=_names(connection))
    if not takes_adapters:
        taking = connection.scalars(select(base_models.c.name).where(base_models.c.takes_adapters))
        raise AdaptersNotSupportedError(base_model=name, taking=list(taking))


def is_base_model(connection: Connection, name: str) -> bool:
    """Whether there is one of that name."""
    query = select(base_models.c.name).where(base_models.c.name == name)
    return connection.scalar(query) is not None


def delete_base_model(connection: Connection, name: str) -> bool:
    """Whether there was one."""
    deleted = connection.execute(delete(base_models).where(base_models.c.name == name))
    return deleted.rowcount > 0


def _names(connection: Connection) -> list[str]:
    return list(connection.scalars(select(base_models.c.name)))


def _base_model(row: Row[tuple[object, ...]]) -> BaseModel:
    return BaseModel(
        name=row.name,
        max_lora_rank=row.max_lora_rank,
        max_model_len=row.max_model_len,
        tensor_shapes={name: tuple(shape) for name, shape in row.tensor_shapes.items()},
        takes_adapters=row.takes_adapters,
    )
