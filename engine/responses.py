"""Sending responses to Triton from a thread of their own.

A send is a blocking round trip through shared memory: on the engine's event loop it would hold up
every request. One Triton response carries all frames that wait for its request, so a slow Triton
makes responses larger, not later.
"""

import logging
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

log = logging.getLogger(__name__)

CLIENT_PERIOD_S, GATEWAY_PERIOD_S = 0.1, 1.0
"""How often Triton is asked whether a direct client, or a gateway, has gone: a round trip each.

A gateway tells itself which of its clients have gone.
"""


class Outgoing(ABC):
    """One request's responses on their way to Triton."""

    def __init__(
        self, sender: Any, outbox: "queue.SimpleQueue[Outgoing | None]", *, question_period_s: float
    ) -> None:
        self._sender = sender
        self._outbox = outbox
        self._question_period_s = question_period_s
        self.question_at = time.monotonic() + question_period_s
        """When Triton is asked again whether the client has gone; for the sender's thread alone."""
        self.is_over = False
        """Whether nothing more can be sent; for the sender's thread alone."""
        self._cancel: Callable[[], object] | None = None
        self._lock = threading.Lock()

    @abstractmethod
    def flush(self) -> bool:
        """Send what waits; whether that was the end. Called by the sender's thread alone."""

    def on_cancel(self, cancel: Callable[[], object]) -> None:
        """What to call, once, from the sender's thread, when the client has gone."""
        self._cancel = cancel

    def check_cancelled(self) -> None:
        """Cancel the request when its client has gone. Called by the sender's thread alone."""
        self.question_at = time.monotonic() + self._question_period_s
        if self._cancel is not None and self._sender is not None and self._sender.is_cancelled():
            self._call_cancel()

    def abandon(self) -> None:
        """After a response that could not be sent: end the request, or its client waits for ever.

        Called by the sender's thread alone.
        """
        self._call_cancel()
        try:
            self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception:
            log.exception("response.end_lost")
        self._release()

    def _release(self) -> None:
        # Only the sender's destructor tells Triton to forget the request, and until then Triton
        # won't unload the model: python_backend's response_sender.cc, ~ResponseSender.
        self._sender = None

    def _call_cancel(self) -> None:
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()


class Response(Outgoing):
    """Frames for a gateway. `write` and `finish` may be called from any thread."""

    def __init__(self, sender: Any, outbox: "queue.SimpleQueue[Outgoing | None]") -> None:
        super().__init__(sender, outbox, question_period_s=GATEWAY_PERIOD_S)
        self._pending: list[bytes] = []
        self._finished = False

    def write(self, frames: bytes) -> None:
        """Send bytes."""
        with self._lock:
            waiting = bool(self._pending)
            self._pending.append(frames)
        if not waiting:
            self._outbox.put(self)

    def finish(self) -> None:
        """Tell Triton that nothing more will come."""
        with self._lock:
            self._finished = True
        self._outbox.put(self)

    def flush(self) -> bool:
        """Send what waits in one response; whether that was the end."""
        with self._lock:
            pending, self._pending = self._pending, []
            finished = self._finished
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if finished else 0
        if pending:
            self._sender.send(_response(b"".join(pending)), flags=flags)
        elif finished:
            self._sender.send(flags=flags)
        if finished:
            self._release()
        return finished


class Failure(StrEnum):
    """Why a direct client's request is not answered: the names of Triton's error codes."""

    INVALID_ARG = "INVALID_ARG"
    NOT_FOUND = "NOT_FOUND"
    CANCELLED = "CANCELLED"
    UNAVAILABLE = "UNAVAILABLE"
    INTERNAL = "INTERNAL"


class NativeResponse(Outgoing):
    """Tensors for a direct client; each method may be called from any thread."""

    def __init__(self, sender: Any, outbox: "queue.SimpleQueue[Outgoing | None]") -> None:
        super().__init__(sender, outbox, question_period_s=CLIENT_PERIOD_S)
        self._waiting: list[tuple[Any, bool]] = []

    def send(self, tensors: Mapping[str, NDArray[Any]], *, final: bool) -> None:
        """Send one response; nothing may come after the final one."""
        named = [pb_utils.Tensor(name, tensor) for name, tensor in tensors.items()]
        self._put(pb_utils.InferenceResponse(output_tensors=named), final=final)

    def fail(self, failure: Failure, message: str) -> None:
        """Send the final response, which is an error."""
        code = getattr(pb_utils.TritonError, failure.value)
        error = pb_utils.TritonError(message, code)
        self._put(pb_utils.InferenceResponse(output_tensors=[], error=error), final=True)

    def flush(self) -> bool:
        """Send each response that waits; whether that was the end."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for response, final in waiting:
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
            self._sender.send(response, flags=flags)
            if final:
                self._release()
                return True
        return False

    def _put(self, response: Any, *, final: bool) -> None:
        with self._lock:
            self._waiting.append((response, final))
        self._outbox.put(self)


Opened = TypeVar("Opened", bound=Outgoing)


class ResponseSender:
    """The thread that sends."""

    def __init__(self) -> None:
        self._outbox: queue.SimpleQueue[Outgoing | None] = queue.SimpleQueue()
        self._open: set[Outgoing] = set()
        self._thread = threading.Thread(target=self._run, name="responses", daemon=True)
        self._thread.start()

    def open(self, sender: Any) -> Response:
        """Begin the response to a request of a gateway's."""
        return self._opened(Response(sender, self._outbox))

    def open_native(self, sender: Any) -> NativeResponse:
        """Begin the responses of a direct client's request."""
        return self._opened(NativeResponse(sender, self._outbox))

    def stop(self) -> None:
        """Send what waits and end the thread."""
        self._outbox.put(None)
        self._thread.join()

    def _opened(self, response: Opened) -> Opened:
        # From now on the thread asks after its client.
        self._outbox.put(response)
        return response

    def _run(self) -> None:
        next_question = math.inf
        while True:
            try:
                response = self._outbox.get(timeout=_until(next_question))
            except queue.Empty:
                pass
            else:
                if response is None:
                    return
                self._flush(response)
                if not response.is_over:
                    next_question = min(next_question, response.question_at)
            if time.monotonic() >= next_question:
                self._ask_after_clients()
                next_question = min((each.question_at for each in self._open), default=math.inf)

    def _flush(self, response: Outgoing) -> None:
        # `finish` after a flush that already carried the end: nothing is left to send.
        if response.is_over:
            return
        self._open.add(response)
        try:
            response.is_over = response.flush()
        except Exception:
            log.exception("response.lost")
            response.abandon()
            response.is_over = True
        if response.is_over:
            self._open.discard(response)

    def _ask_after_clients(self) -> None:
        now = time.monotonic()
        for response in self._open:
            if response.question_at <= now:
                try:
                    response.check_cancelled()
                except Exception:
                    log.exception("response.cancellation_unknown")


def _until(moment: float) -> float | None:
    """As a timeout; None is for ever."""
    return None if moment == math.inf else max(0.0, moment - time.monotonic())


def _response(frames: bytes) -> Any:
    tensor = pb_utils.Tensor("frames", np.frombuffer(frames, dtype=np.uint8))
    return pb_utils.InferenceResponse(output_tensors=[tensor])
