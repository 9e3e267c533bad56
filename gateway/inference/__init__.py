"""The endpoints that ask an engine: what a client sends is checked, resolved and handed over."""
