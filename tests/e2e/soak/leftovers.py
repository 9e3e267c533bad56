"""What an installation still has of adapters that were deleted."""

import json
from collections.abc import Collection

from sqlalchemy import create_engine, select

from adapter_sync.lora_map import LORA_MAP_FILE
from adapter_sync.record import adapter_id_of
from adapter_sync.registry.tables import metadata, revisions
from tests.stack_process import Stack

OUTLIVES = {"audit", "usage"}
"""The tables that tell of what is gone."""


def leftovers(
    stack: Stack, ids: Collection[str], tenant_ids: Collection[str]
) -> dict[str, list[str]]:
    """By where it is; empty when these adapters, and these tenants' aliases, left nothing.

    Blobs that no revision uses, staged files and requests in flight are told whoever's they are.
    """
    rows, used = _rows(stack, ids, tenant_ids)
    blobs = {each.name for each in stack.data.joinpath("blobs").glob("??/*")}
    lora_map = json.loads((stack.companion / LORA_MAP_FILE).read_text())
    status = stack.engine()
    found = {
        **rows,
        "blobs": sorted(blobs - used),
        "blobs that are missing": sorted(used - blobs),
        "staging": stack.leftovers(),
        "folders": _of(ids, stack.adapter_folders()),
        "lora map": _of(ids, [each["lora_name"] for each in lora_map["adapters"]]),
        "engine": ["silent"] if status is None else _of(ids, status.adapters),
        "in flight": ["some"] if status is None or status.in_flight else [],
    }
    return {where: what for where, what in found.items() if what}


def _rows(
    stack: Stack, ids: Collection[str], tenant_ids: Collection[str]
) -> tuple[dict[str, list[str]], set[str]]:
    """The rows that name one of the adapters or are an alias, and the digests of all used blobs."""
    engine = create_engine(f"sqlite:///{stack.data / 'registry.db'}")
    found: dict[str, list[str]] = {}
    with engine.connect() as connection:
        for table in metadata.sorted_tables:
            name = {"adapters": "id"}.get(table.name, "adapter_id")
            if name in table.c and table.name not in OUTLIVES:
                there = connection.scalars(select(table.c[name]))
                found[table.name] = _of(ids, there.all())
        aliases = metadata.tables["aliases"]
        of_tenants = aliases.c.tenant_id.in_(tenant_ids)
        found["aliases"] = list(connection.scalars(select(aliases.c.name).where(of_tenants)))
        used = connection.execute(select(revisions.c.config_blob, revisions.c.weights_blob))
        digests = {digest for row in used for digest in row}
    engine.dispose()
    return found, digests


def _of(ids: Collection[str], names: Collection[str]) -> list[str]:
    return sorted(each for each in names if adapter_id_of(each) in ids)
