"""The registry is the truth, Triton's repository its projection: this brings them together."""

from adapter_sync.reconciler.loop import Folders, run_reconcilers

__all__ = ["Folders", "run_reconcilers"]
