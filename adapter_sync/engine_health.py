"""Ask a base model, through Triton, whether its engine is alive: the request and its answer.

The question goes the way of every request: Triton, the base model's process, the loop that its
requests are answered on. The answer holds the engine's own last proof (engine/engine_watch.py).
"""

import json
from dataclasses import dataclass

from tritonclient.grpc import service_pb2

from adapter_sync.errors import TritonRefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineHealth:
    """What a base model says of its engine.

    `reason` says why it is dead, None while it is alive. `proof_age_s` is how many seconds ago it
    last made a step, or answered a question put to it and all its workers.
    """

    alive: bool
    reason: str | None
    proof_age_s: float


def health_request(base_model: str) -> service_pb2.ModelInferRequest:
    """The question; it has one answer, on a stream of its own."""
    message = service_pb2.ModelInferRequest(model_name=base_model)
    message.inputs.add(name="health", datatype="BOOL", shape=[1])
    message.raw_input_contents.append(b"\x01")
    return message


def read_health(message: service_pb2.ModelStreamInferResponse) -> EngineHealth:
    """The answer. Raises TritonRefusedError with Triton's words, or when it is no answer."""
    if message.error_message:
        raise TritonRefusedError(message.error_message)
    try:
        (raw,) = message.infer_response.raw_output_contents
        # Triton puts an element's length, in 4 bytes, before it.
        told = json.loads(raw[4:])
        return EngineHealth(
            alive=bool(told["alive"]),
            reason=told["reason"],
            proof_age_s=float(told["proof_age_s"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise TritonRefusedError(f"the base model tells no health: {error!r}") from error
