"""Faults done to a running installation, and what its clients saw of them."""
