"""The schema's steps, in the order of their numbers."""
