"""The gateway's limits: times and sizes in one place. Imports nothing of the project."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long and how much.

    A stream answers with its first token, so its two deadlines find a dead engine soon. An answer
    in one piece comes only when all of it is generated: it has `request_timeout_s`, as every
    request has in all, unless its client asks for less.

    A stream that has not begun is kept alive by comments, within the minute that proxies wait. More
    often than need be is bad: `vllm bench serve` 0.32 takes the event after a comment for a part of
    it, and leaves it out.
    """

    request_timeout_s: float = 1800

    first_response_s: float = 120
    between_responses_s: float = 120
    loading_wait_s: float = 5
    keep_alive_s: float = 30
    readiness_s: float = 2

    body_idle_s: float = 60
    max_body_bytes: int = 4 * 1024 * 1024
    max_field_bytes: int = 1024
    max_config_bytes: int = 1024 * 1024
    max_form_overhead_bytes: int = 64 * 1024
    upload_chunk_bytes: int = 1024 * 1024
    upload_threads: int = 4
    hub_threads: int = 8

    adapter_wait_s: int = 5
    max_adapter_wait_s: int = 60
    adapter_poll_s: float = 0.02
    adapter_event_s: float = 0.25
