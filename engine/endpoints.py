"""vLLM's endpoints that may be called, and what differs between their protocols.

Imports neither vllm nor anything of the project.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

ErrorEvent = Callable[[str, bool], bytes]
"""The error's message, and whether the request was at fault."""
GENERATE, EMBED = "generate", "embed"
ENGINE_FAILED = "The engine failed. Try again."
_SERVER_ERROR = 500


def openai_error_event(message: str, is_clients: bool) -> bytes:  # noqa: FBT001 - ErrorEvent
    """An error in the middle of a stream, as OpenAI's clients know it."""
    kind = "invalid_request_error" if is_clients else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"


def responses_error_event(message: str, is_clients: bool) -> bytes:  # noqa: FBT001 - ErrorEvent
    """The same in the Responses API. https://platform.openai.com/docs/api-reference/responses."""
    code = "invalid_prompt" if is_clients else "server_error"
    error = {"type": "error", "message": message, "param": None, "code": code}
    return b"event: error\ndata: " + json.dumps({**error, "sequence_number": 0}).encode() + b"\n\n"


def anthropic_error_event(message: str, is_clients: bool) -> bytes:  # noqa: FBT001 - ErrorEvent
    """The same in the Messages API. https://docs.anthropic.com/en/api/messages-streaming."""
    kind = "invalid_request_error" if is_clients else "api_error"
    error = {"type": "error", "error": {"type": kind, "message": message}}
    return b"event: error\ndata: " + json.dumps(error).encode() + b"\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A path of vLLM's server, of which `task` has to be one of the model's tasks.

    `id_prefix` begins the id that the request gets, None where its protocol takes none; `salted`
    is whether it takes a cache_salt; `queued`, whether the engine works on it, so that it has to
    wait for its turn; `prompts`, its field that may hold several.
    """

    path: str
    task: str | None = GENERATE
    id_prefix: str | None = ""
    salted: bool = True
    queued: bool = True
    prompts: str | None = None
    error_event: ErrorEvent = openai_error_event

    def body(
        self,
        body: Mapping[str, Any],
        *,
        model: str,
        request_id: str,
        cache_salt: str | None,
    ) -> bytes:
        """The client's body with what is ours to set."""
        ours = {"model": model}
        if self.id_prefix is not None:
            ours["request_id"] = self.id_prefix + request_id
        if self.salted and cache_salt is not None:
            ours["cache_salt"] = cache_salt
        return json.dumps({**body, **ours}).encode()

    def sequences(self, body: Mapping[str, Any]) -> int:
        """How many answers a body asks for at once; what vLLM would refuse counts as one."""
        choices = body.get("n")
        prompts = body.get(self.prompts) if self.prompts is not None else None
        # A list of numbers is one prompt.
        count = 1
        if isinstance(prompts, list) and prompts and isinstance(prompts[0], str | list):
            count = len(prompts)
        return count * choices if type(choices) is int and choices > 0 else count


ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "chat.completions": Endpoint(path="/v1/chat/completions"),
        "completions": Endpoint(path="/v1/completions", prompts="prompt"),
        "responses": Endpoint(
            path="/v1/responses", id_prefix="resp_", error_event=responses_error_event
        ),
        "messages": Endpoint(
            path="/v1/messages", id_prefix=None, error_event=anthropic_error_event
        ),
        "messages.count_tokens": Endpoint(
            path="/v1/messages/count_tokens",
            id_prefix=None,
            salted=False,
            queued=False,
            error_event=anthropic_error_event,
        ),
        "embeddings": Endpoint(path="/v1/embeddings", task=EMBED, prompts="input"),
        "tokenize": Endpoint(
            path="/tokenize", task=None, id_prefix=None, salted=False, queued=False
        ),
        "detokenize": Endpoint(
            path="/detokenize", task=None, id_prefix=None, salted=False, queued=False
        ),
    }
)
"""By the name that the gateway uses."""


def mend_error_event(
    body: bytes, error_event: ErrorEvent, *, lora_name: str | None, served_name: str
) -> bytes:
    """VLLM's own error in the middle of a stream in its API's words, our identities hidden.

    Of an error that is not the client's nothing is told but that there was one.

    Other bytes come back as they are. vllm/entrypoints/generate/base/serving.py and
    vllm/entrypoints/anthropic/serving.py.
    """
    if not body.startswith((b'data: {"error"', b"event: error\n")):
        return body
    event, separator, rest = body.partition(b"\n\n")
    _, _, data = event.partition(b"data: ")
    error = json.loads(data)["error"]
    code = error.get("code")
    if not (isinstance(code, int) and code < _SERVER_ERROR):
        return error_event(ENGINE_FAILED, False) + (rest if separator else b"")  # noqa: FBT003 - ErrorEvent
    message = str(error.get("message"))
    if lora_name is not None:
        message = message.replace(lora_name, served_name)
    return error_event(message, True) + (rest if separator else b"")  # noqa: FBT003 - ErrorEvent
