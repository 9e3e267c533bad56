"""Says whether an upload is an adapter that its base model can serve, before the engine sees it.

Imports neither torch nor vllm: what vLLM 0.32 and PEFT accept is written down here as rules.
"""

from adapter_sync.validation.check import check_adapter
from adapter_sync.validation.facts import AdapterFacts

__all__ = ["AdapterFacts", "check_adapter"]
