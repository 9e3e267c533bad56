"""The operator's command line.

It works on the installation's own registry and blobs, so it runs on the installation's machine
and needs no key.
"""

from adapter_sync.loractl.arguments import main

__all__ = ["main"]
