"""How long whoever needs the registry waits for it, in seconds. Imports nothing."""

PATIENCE_S = 30.0
"""Of work in the background and of commands."""
REQUEST_PATIENCE_S = 5.0
"""Of a client's request: better an error soon than an answer late."""
