"""How the processes write their logs: one JSON object a line, on stdout."""

import logging
import sys

import structlog

from adapter_sync.repetitions import Repetitions


def configure_logs() -> None:
    """Send structlog's events and the libraries' records to the same place in the same form."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _WithoutRepeatedTracebacks(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    # They tell each address that they ask for: a signed one opens a private file.
    for client in ("httpx", "httpx2"):
        logging.getLogger(client).setLevel(logging.WARNING)


class _WithoutRepeatedTracebacks:
    """A structlog processor: of an event's tracebacks the first, and then one a minute.

    The lines themselves stay, with the error in a word, and say how many tracebacks were left out.
    """

    def __init__(self) -> None:
        self._repetitions = Repetitions()

    def __call__(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        told = event.get("exc_info")
        error = sys.exc_info()[1] if told is True else told
        if isinstance(error, tuple):
            error = error[1]
        if not isinstance(error, BaseException):
            return event
        left_out = self._repetitions.count((event.get("event"), type(error)))
        if left_out is None:
            del event["exc_info"]
            event.setdefault("error", repr(error))
        elif left_out:
            event["tracebacks_left_out"] = left_out
        return event
