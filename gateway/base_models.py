"""The base models, kept while the registry does not change.

Reading them costs milliseconds, their tensor shapes being large; the change counter costs little.
"""

from collections.abc import Mapping

from adapter_sync.record import BaseModel, Tenant
from adapter_sync.registry import Registry


class BaseModels:
    """The registry's base models by name. Thread-safe: the pair is replaced, never changed."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: tuple[int, Mapping[str, BaseModel]] | None = None

    def by_name(self) -> Mapping[str, BaseModel]:
        """The base models as they are now, sorted by name; asks the database."""
        counter = self._registry.change_counter()
        known = self._known
        if known is None or known[0] != counter:
            # Read after the counter: what is kept is at least as new as the number beside it.
            base_models = {base.name: base for base in self._registry.base_models()}
            known = self._known = (counter, base_models)
        return known[1]

    def of(self, tenant: Tenant) -> Mapping[str, BaseModel]:
        """Those that are there for the tenant, in the same order; asks the database."""
        return {name: base for name, base in self.by_name().items() if base.is_for(tenant.id)}
