"""The OpenAI API over HTTP: tenants and keys, adapters, routing to Triton.

Imports from adapter_sync its errors, record, registry, blobs, validation, intake, tiers,
settings and logs; never the engine or vllm.
"""
