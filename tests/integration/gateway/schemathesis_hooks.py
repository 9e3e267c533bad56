"""Loaded by schemathesis in a process of its own: what the document can't say of its bodies."""

from typing import Any

import schemathesis
from hypothesis import strategies as st

from tests.integration.gateway.running import adapter_weights

# Half of the files are adapters.
schemathesis.openapi.format(
    "binary",
    st.integers(0, 5).map(lambda seed: adapter_weights(seed=seed)) | st.binary(min_size=1),
)


@schemathesis.hook
def map_body(_context: Any, body: Any) -> Any:
    """1.0 as 1: an integer to JSON Schema, as the API is told by OpenAI's clients."""
    if isinstance(body, dict):
        return {name: map_body(_context, value) for name, value in body.items()}
    if isinstance(body, list):
        return [map_body(_context, value) for value in body]
    return int(body) if isinstance(body, float) and body.is_integer() else body
