"""One of the gateway's processes, as uvicorn starts it."""

import multiprocessing
import os
import signal
import threading

from fastapi import FastAPI

from adapter_sync.logs import configure_logs
from adapter_sync.settings import load_settings
from gateway.app import create_app


def worker_app() -> FastAPI:
    """What a process of the gateway serves. Raises ConfigurationError."""
    if (parent := multiprocessing.parent_process()) is not None:
        configure_logs()
        # However that one ends: what is left would keep the port.
        threading.Thread(target=_end_after, args=(parent,), daemon=True).start()
    return create_app(load_settings())


def _end_after(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
