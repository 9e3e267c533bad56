"""Triton's repository control: which models it has, load one, unload one.

By gRPC, because a load over HTTP holds one of Triton's few HTTP threads until the model is there,
and with it every connection that came to the same thread: minutes, for an engine that starts.
https://github.com/triton-inference-server/server/issues/8635
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from adapter_sync.engine_health import EngineHealth, health_request, read_health
from adapter_sync.errors import TritonRefusedError, TritonUnavailableError
from adapter_sync.settings import Settings

ANSWER_DEADLINE_S = 10.0
HEALTH_DEADLINE_S = 5.0
LOAD_DEADLINE_S = 2 * 3600.0
"""Weights of hundreds of gigabytes may have to be fetched first."""
_UNAVAILABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """Triton's word on a model: READY, LOADING, UNLOADING, UNAVAILABLE, or "" before any load."""

    state: str
    reason: str


class TritonRepository(Protocol):
    """Triton's models, as far as base models need it."""

    def states(self) -> Mapping[str, ModelState]:
        """Those in the repository's folder. Raises TritonUnavailableError, TritonRefusedError."""

    def is_ready(self, model: str) -> bool:
        """Also of one whose folder is gone. Raises TritonUnavailableError, TritonRefusedError."""

    def load(self, model: str) -> None:
        """Return when it serves. Raises TritonUnavailableError, TritonRefusedError."""

    def unload(self, model: str) -> None:
        """Take no new requests. Raises TritonUnavailableError, TritonRefusedError."""


class GrpcRepository:
    """TritonRepository of a running Triton. Thread-safe."""

    def __init__(self, address: str, metadata: Mapping[str, str]) -> None:
        self._metadata = tuple(metadata.items())
        # Triton is near: a proxy of the environment is for elsewhere.
        options = (("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 2_000))
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(
            grpc.insecure_channel(address, options=options)
        )

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """That of the installation's Triton."""
        address = f"{settings.triton_host}:{settings.triton_grpc_port}"
        return cls(address, settings.triton_metadata)

    def states(self) -> Mapping[str, ModelState]:
        """RepositoryIndex."""
        answer = self._asked(self._stub.RepositoryIndex, service_pb2.RepositoryIndexRequest())
        return MappingProxyType(
            {each.name: ModelState(state=each.state, reason=each.reason) for each in answer.models}
        )

    def is_ready(self, model: str) -> bool:
        """ModelReady."""
        request = service_pb2.ModelReadyRequest(name=model)
        return bool(self._asked(self._stub.ModelReady, request).ready)

    def load(self, model: str) -> None:
        """RepositoryModelLoad."""
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        self._asked(self._stub.RepositoryModelLoad, request, within_s=LOAD_DEADLINE_S)

    def unload(self, model: str) -> None:
        """RepositoryModelUnload."""
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        self._asked(self._stub.RepositoryModelUnload, request)

    def health(self, base_model: str) -> EngineHealth:
        """ModelStreamInfer, with one request on it."""
        answers = self._asked(
            lambda *arguments, **options: list(self._stub.ModelStreamInfer(*arguments, **options)),
            iter([health_request(base_model)]),
            within_s=HEALTH_DEADLINE_S,
        )
        if not answers:
            raise TritonUnavailableError("Triton ended the stream before its final response.")
        return read_health(answers[0])

    def _asked(self, method: Any, request: Any, *, within_s: float = ANSWER_DEADLINE_S) -> Any:
        try:
            return method(request, timeout=within_s, metadata=self._metadata)
        except grpc.RpcError as error:
            words = error.details()
            if error.code() in _UNAVAILABLE:
                raise TritonUnavailableError(f"Triton does not answer: {words}") from error
            raise TritonRefusedError(words) from error
