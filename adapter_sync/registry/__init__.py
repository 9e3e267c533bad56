"""The registry's public face: Registry. Its tables and its SQL stay inside."""

from adapter_sync.registry.listing import AdapterPage, AdapterQuery
from adapter_sync.registry.registry import Registry

__all__ = ["AdapterPage", "AdapterQuery", "Registry"]
