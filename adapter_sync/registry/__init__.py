"""The registry's public face: Registry. Its tables and its SQL stay inside."""

from adapter_sync.registry.adapters import AdapterFilter
from adapter_sync.registry.database import Watch
from adapter_sync.registry.listing import AdapterQuery
from adapter_sync.registry.registry import Registry

__all__ = ["AdapterFilter", "AdapterQuery", "Registry", "Watch"]
