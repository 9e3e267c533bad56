"""What a base model's engine is to have, kept between passes: the registry tells what changed."""

from collections.abc import Mapping

from adapter_sync.reconciler.plan import Served, contents_served, in_order
from adapter_sync.record import BEFORE_ALL, DesiredAdapter
from adapter_sync.registry import Registry


class DesiredState:
    """A base model's adapters as the registry had them at the last look."""

    def __init__(self, registry: Registry, base_model: str) -> None:
        self._registry = registry
        self._base_model = base_model
        self._change = BEFORE_ALL
        self._adapters: dict[str, DesiredAdapter] = {}
        self._contents: dict[str, tuple[Served, ...]] = {}
        self._served: tuple[Served, ...] = ()

    @property
    def adapters(self) -> Mapping[str, DesiredAdapter]:
        """The adapters of every tenant and in every status, by id."""
        return self._adapters

    @property
    def served(self) -> tuple[Served, ...]:
        """What the engine is to have, sorted by lora_name."""
        return self._served

    def forget(self, adapter_id: str) -> None:
        """Leave out an adapter that was taken out of the registry; it was being deleted."""
        del self._adapters[adapter_id], self._contents[adapter_id]

    def look(self) -> None:
        """Read what changed since the last look; all, if adapters that were known are gone.

        Those are no change that could be read: there are more known then than the registry counts.
        """
        changes = self._registry.desired_adapters(self._base_model, self._change)
        known = self._adapters.keys() | {each.id for each in changes.adapters}
        # A registry that was set back to an earlier state counts anew.
        if len(known) != changes.count or changes.change < self._change:
            changes = self._registry.desired_adapters(self._base_model)
            self._adapters.clear()
            self._contents.clear()
        elif not changes.adapters:
            return
        self._change = changes.change
        for adapter in changes.adapters:
            self._adapters[adapter.id] = adapter
            self._contents[adapter.id] = contents_served(adapter)
        self._served = in_order(self._contents.values())
