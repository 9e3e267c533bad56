"""The registry is the truth, Triton's repository its projection: this brings them together."""

from adapter_sync.reconciler.loop import run_reconcilers

__all__ = ["run_reconcilers"]
