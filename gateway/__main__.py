"""`python -m gateway`: serve the gateway until SIGTERM or SIGINT."""

import argparse
import shutil
import sys

import uvicorn

from adapter_sync.errors import ConfigurationError
from adapter_sync.logs import configure_logs
from adapter_sync.settings import Settings, load_settings
from adapter_sync.tiers import load_tiers

_KEEP_ALIVE_S = 75
"""Longer than clients keep an idle connection: httpx, and so the openai SDK, uses one up to 5 s.

Were it theirs (5 s is uvicorn's own), a request could meet the closing of its connection.
"""

_SILENT_S = 30
"""A worker that does not say for so long that it lives is replaced."""


def main() -> None:
    """Serve. Requests under way may end after a signal, those that take too long are told."""
    _parser().parse_args()
    try:
        settings = load_settings()
        load_tiers(settings.lora_tiers_file)
    except ConfigurationError as error:
        sys.exit(f"gateway: {error}")
    configure_logs()
    shutil.rmtree(settings.rate_limits_folder, ignore_errors=True)
    uvicorn.run(
        "gateway.worker:worker_app",
        factory=True,
        workers=settings.gateway_workers,
        host=settings.gateway_host,
        port=settings.gateway_port,
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=round(settings.lora_stop_within_s),
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_worker_healthcheck=_SILENT_S,
    )


def _parser() -> argparse.ArgumentParser:
    settings = "\n".join(
        f"  {name.upper():<22}{field.description} (default: {field.default})"
        for name, field in Settings.model_fields.items()
    )
    return argparse.ArgumentParser(
        prog="python -m gateway",
        description="The OpenAI API in front of Triton, in the foreground until Ctrl-C.",
        epilog=f"settings, from the environment or .env:\n{settings}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


if __name__ == "__main__":
    main()
