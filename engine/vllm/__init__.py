"""What this server changes inside vLLM, each change in a module of its own.

A module here may use vLLM's private names. The tests in tests/unit/engine/vllm pin those names, and
fail when a new version of vLLM has changed what they stand for.
"""
