"""One vLLM engine, its OpenAI application and its adapters, on one event loop.

Knows nothing of Triton: requests come as bytes, responses go to a Responder.
"""

import asyncio
import json
import logging
import math
import os
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    aclosing,
    asynccontextmanager,
    nullcontext,
    suppress,
)
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psutil
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.usage.usage_lib import UsageContext
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine.async_llm import AsyncLLM

from adapter_sync.lora_map import (
    VERSION_FOLDER,
    LoraMapError,
    adapter_files_folder,
    companion_name,
    parse_lora_map,
    read_lora_map,
)
from engine.adapter_table import AdapterTable, UnknownAdapterError
from engine.admission import Admission, Entry, QueueTimeoutError
from engine.admission_settings import AdmissionSettings, limits_of, no_limits
from engine.channels import Responder
from engine.endpoints import ENDPOINTS, ENGINE_FAILED, Endpoint, mend_error_event
from engine.engine_watch import EngineUnavailableError, EngineWatch
from engine.fair_queue import Asked, QueueFullError
from engine.fair_scheduler import read_in_turns
from engine.handover_server import HandoverServer
from engine.native_answer import NativeAnswer
from engine.native_generation import SAMPLING_TYPES, generate_text, sampling_params
from engine.native_request import NativeRequestError, Tensors, parse_native_request
from engine.openai_app import OpenAIApp, UnsupportedEndpointError
from engine.priority import with_priority
from engine.responses import Failure
from engine.token_usage import COUNTER, TokenCounter, estimated_tokens
from engine.vllm.processes import end_engine_with_this_process
from engine.vllm.refusals import refuse_bad_values
from engine.worker_extension import GROUP_ADAPTERS, HELD_ADAPTERS, MEND_VLLM

log = logging.getLogger(__name__)

WORKER_PROBE = "check_health"
"""A method of each of vLLM's workers, which does nothing: vllm/v1/worker/worker_base.py."""
LOOK_PERIOD_S = 1.0
"""How often vLLM is asked where the adapters are, at most. With 64 adapters an answer takes 0.6 ms,
or a step of the engine while it is busy; asked ten times a second, streams were no slower."""


class NativeResponder(Protocol):
    """Where a direct client's response goes."""

    def send(self, tensors: Tensors, *, final: bool) -> None:
        """Send one response; nothing may come after the final one."""

    def fail(self, failure: Failure, message: str) -> None:
        """Send the final response, which is an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _EngineRequest:
    endpoint: Endpoint
    lora_name: str | None
    served_name: str
    request_id: str
    cache_salt: str | None
    tenant: str
    weight: float
    body: Mapping[str, Any]


class BaseEngine:
    """A base model being served."""

    def __init__(
        self,
        engine: AsyncLLM,
        app: OpenAIApp,
        table: AdapterTable[LoRARequest] | None,
        admission: Admission,
        watch: EngineWatch,
    ) -> None:
        self._engine = engine
        self._app = app
        self._table = table
        self._admission = admission
        self._watch = watch
        self._handover: HandoverServer | None = None
        # They stay the same as long as the engine lives; finding them reads every process of the
        # machine.
        self._pids = _process_ids()
        self._answering: set[asyncio.Task[Any]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._watching = asyncio.create_task(self._end_when_dead())

    @classmethod
    async def start(
        cls, arguments: Namespace, admission: AdmissionSettings | None, *, max_step_s: float
    ) -> "BaseEngine":
        """Start vLLM; returns when it can generate. Without `admission` nothing queues for it.

        An engine that makes no step for `max_step_s` while it is asked counts as dead.
        """
        end_engine_with_this_process()
        config = AsyncEngineArgs.from_cli_args(arguments).create_engine_config(
            usage_context=UsageContext.OPENAI_API_SERVER
        )
        if admission is not None:
            read_in_turns(config.scheduler_config)
        engine = AsyncLLM.from_vllm_config(
            config,
            usage_context=UsageContext.OPENAI_API_SERVER,
            disable_log_stats=arguments.disable_log_stats,
        )
        refuse_bad_values(engine)
        app = await OpenAIApp.create(engine, arguments)
        await engine.collective_rpc(MEND_VLLM)
        lora = engine.vllm_config.lora_config
        if lora:
            await engine.collective_rpc(GROUP_ADAPTERS)
        table = lora and AdapterTable(
            engine,
            lora_requests=app.lora_requests,
            make_request=_lora_request,
            max_cpu_loras=lora.max_cpu_loras or lora.max_loras,
        )
        # What the start left behind, a million objects, is no garbage collection's business: a full
        # one of them all would hold every stream meanwhile.
        freeze_gc_heap()
        watch = EngineWatch(
            is_errored=lambda: engine.errored,
            probe=partial(engine.collective_rpc, WORKER_PROBE),
            max_step_s=max_step_s,
        )
        after_each_step(engine, watch.note_step)
        return cls(engine, app, table, _admission(engine, admission), watch)

    async def serve_adapters(self, model_folder: Path, socket: Path) -> None:
        """Listen for the companion, then apply the map that lies in its folder.

        In this order a map that arrives meanwhile is either in the folder or on the socket.
        """
        if self._table is None:
            return
        repository, base_model = model_folder.parent, model_folder.name
        files = adapter_files_folder(repository, base_model)
        self._handover = HandoverServer(socket, partial(self._answer_companion, files))
        await self._handover.start()
        companion = repository / companion_name(base_model) / VERSION_FOLDER
        try:
            await self._table.apply(read_lora_map(companion), files)
        except LoraMapError:
            # adapter_sync writes it anew; the base model serves meanwhile.
            log.exception("lora_map.unreadable")
        self._looking = asyncio.create_task(self._look_at_adapters(self._table))

    async def stop(self) -> None:
        """Stop listening and end vLLM's processes."""
        self._watching.cancel()
        if self._looking is not None:
            self._looking.cancel()
        try:
            if self._handover is not None:
                await self._handover.stop()
        finally:
            await asyncio.to_thread(self._engine.shutdown)

    async def answer(self, raw: bytes, responder: Responder) -> None:
        """Answer one request; never raises, whatever the request is."""
        try:
            await self._answer(_parse_request(raw), responder)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            responder.write(_error(f"The request can't be read: {error}", None), http_status=400)

    async def answer_native(
        self, tensors: Tensors, parameters: str, responder: NativeResponder
    ) -> None:
        """Answer a direct client's request, in the tensors of NVIDIA's vLLM backend.

        Raises nothing but CancelledError, whatever the request is.
        """
        try:
            await self._answer_native(tensors, parameters, responder)
        except asyncio.CancelledError:
            responder.fail(Failure.CANCELLED, "The request was cancelled.")
            raise
        except UnknownAdapterError as error:
            responder.fail(Failure.NOT_FOUND, str(error))
        except (QueueFullError, QueueTimeoutError, EngineUnavailableError) as error:
            responder.fail(Failure.UNAVAILABLE, str(error))
        except (ValueError, TypeError, NotImplementedError, VLLMClientError) as error:
            responder.fail(Failure.INVALID_ARG, str(error))
        except Exception:
            log.exception("request.failed")
            responder.fail(Failure.INTERNAL, ENGINE_FAILED)

    def health(self) -> Mapping[str, Any]:
        """Whether the engine is alive, as JSON's types: see adapter_sync/engine_health.py."""
        return {
            "alive": not self._watch.is_dead,
            "reason": self._watch.dead_because,
            "proof_age_s": round(self._watch.proof_age_s, 3),
        }

    @asynccontextmanager
    async def _while_alive(self) -> AsyncIterator[None]:
        """Count the current task among those that the engine's death ends.

        Raises EngineUnavailableError when the engine is dead, or dies, whatever in vLLM the task
        waits for.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine runs in a task
        self._watch.check()
        self._answering.add(task)
        try:
            yield
        except (asyncio.CancelledError, Exception):
            self._watch.check()
            raise
        finally:
            self._answering.discard(task)

    async def _end_when_dead(self) -> None:
        """End what is left of a dead engine, and the requests that wait for it."""
        reason = await self._watch.watch()
        log.error("engine.dead reason=%r requests=%d", reason, len(self._answering))
        for process in psutil.Process().children(recursive=True):
            # A frozen engine would keep its memory from the next one.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for task in self._answering:
            task.cancel()

    async def _answer_native(
        self, tensors: Tensors, parameters: str, responder: NativeResponder
    ) -> None:
        if "text_input" not in tensors or "openai_request" in tensors:
            raise NativeRequestError("text_input: it must be there, and no openai_request")
        request = parse_native_request(tensors, parameters, sampling_types=SAMPLING_TYPES)
        if "generate" not in await self._engine.get_supported_tasks():
            raise NativeRequestError("text_input: this model makes embeddings, not text")
        lora_name = request.lora_name and self._known_name(request.lora_name)
        sampling = sampling_params(request)
        answer = NativeAnswer(request, choices=sampling.n)
        asked = Asked(
            # It knows no tenants: an adapter counts as one, and the base model.
            tenant=(lora_name or "").partition("@")[0],
            weight=1,
            adapter=self._in_a_slot(lora_name),
            sequences=sampling.n,
            tokens=estimated_tokens(request.prompt),
        )
        counter = TokenCounter(lambda: entry.charge(sum(counter.usage)))
        COUNTER.set(counter)
        async with (
            self._while_alive(),
            self._admission.entered(asked) as entry,
            self._lease(lora_name),
            aclosing(
                generate_text(self._engine, request.prompt, sampling, self._lora(lora_name))
            ) as outputs,
        ):
            # One output alone, the last, when it is no stream.
            async for output in outputs:
                entry.charge(sum(counter.usage))
                responder.send(answer.tensors(output), final=output.finished)

    def _lora(self, lora_name: str | None) -> LoRARequest | None:
        """The request of a leased adapter; without one the base model would answer."""
        return None if lora_name is None else self._app.lora_requests[lora_name]

    def _known_name(self, name: str) -> str:
        return self._table.named(name) if self._table is not None else name

    def status(self) -> Mapping[str, Any]:
        """The adapters' states, the engine's limits and its processes, as JSON's types.

        Of the adapters only those that are not simply on the disk: see TableStatus.
        """
        lora = self._engine.vllm_config.lora_config
        table = self._table.status() if self._table else None
        return {
            "revision": table.revision if table else 0,
            "settled_revision": table.settled_revision if table else 0,
            "adapters": {
                name: {
                    "state": str(each.state),
                    "reason": each.reason,
                    "residency": str(each.residency),
                }
                for name, each in sorted(table.adapters.items())
            }
            if table
            else {},
            "held": table.held if table else 0,
            "alive": not self._watch.is_dead,
            # vLLM's own count too: what it still works on may be nobody's any more.
            "in_flight": max(
                len(self._answering), self._engine.output_processor.get_num_unfinished_requests()
            ),
            "waiting": self._admission.waiting,
            "max_model_len": self._engine.model_config.max_model_len,
            "max_lora_rank": lora.max_lora_rank if lora else 0,
            "max_loras": lora.max_loras if lora else 0,
            "pids": self._pids,
        }

    async def _look_at_adapters(self, table: AdapterTable[LoRARequest]) -> None:
        """Ask vLLM where the adapters are, whenever they may have moved."""
        while not self._watch.is_dead:
            await asyncio.sleep(LOOK_PERIOD_S)
            if not table.may_have_moved():
                continue
            table.begin_looking()
            try:
                slots, cached = _in_all(await self._engine.collective_rpc(HELD_ADAPTERS))
            except Exception:
                log.exception("adapters.not_looked_at")
            else:
                table.note_held(slots, cached)

    async def _answer_companion(
        self, adapter_files: Path, question: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        if self._table is not None and "lora_map" in question:
            # Not on the loop that the streams run on: there may be thousands in it.
            lora_map = await asyncio.to_thread(parse_lora_map, question["lora_map"])
            await self._table.apply(lora_map, adapter_files)
            return {}
        return self.status()

    async def _answer(self, request: _EngineRequest, responder: Responder) -> None:
        """Pass on what vLLM answers; an error may also come in the middle of a stream."""
        try:
            async with (
                self._while_alive(),
                self._entered(request) as entry,
                self._lease(request.lora_name),
                aclosing(
                    self._app.call(
                        request.endpoint,
                        body=request.body,
                        lora_name=request.lora_name,
                        served_name=request.served_name,
                        request_id=request.request_id,
                        cache_salt=request.cache_salt,
                    )
                ) as parts,
            ):
                async for part in parts:
                    # What vLLM says of its own death is not for clients.
                    self._watch.check()
                    body = mend_error_event(
                        part.body,
                        request.endpoint.error_event,
                        lora_name=request.lora_name,
                        served_name=request.served_name,
                    )
                    responder.write(body, http_status=part.http_status, usage=part.usage)
                    if entry is not None:
                        entry.charge(sum(part.usage))
        except UnknownAdapterError as error:
            responder.write(_error(str(error), "adapter_not_loaded"), http_status=404)
        except QueueFullError as error:
            responder.write(_error(str(error), "queue_full"), http_status=429)
        except QueueTimeoutError as error:
            responder.write(_error(str(error), "queue_timeout"), http_status=503)
        except UnsupportedEndpointError:
            api = request.endpoint.path.rpartition("/")[2]
            message = f"The model does not support the {api} API."
            responder.write(_error(message, "unsupported_endpoint", "model"), http_status=400)
        except EngineUnavailableError as error:
            responder.write(_error(str(error), "engine_unavailable"), http_status=503)
        except Exception:
            log.exception("request.failed request_id=%s", request.request_id)
            responder.write(_error(ENGINE_FAILED, "engine_error"), http_status=500)

    def _entered(self, request: _EngineRequest) -> AbstractAsyncContextManager[Entry | None]:
        if not request.endpoint.queued:
            return nullcontext()
        asked = Asked(
            tenant=request.tenant,
            weight=request.weight,
            adapter=self._in_a_slot(request.lora_name),
            sequences=request.endpoint.sequences(request.body),
            tokens=estimated_tokens(request.body),
        )
        return self._admission.entered(asked)

    def _in_a_slot(self, lora_name: str | None) -> str | None:
        """The adapter, unless there are no slots: then its lease refuses it."""
        return lora_name if self._table is not None else None

    def _lease(self, lora_name: str | None) -> AbstractAsyncContextManager[None]:
        if lora_name is None:
            return nullcontext()
        if self._table is None:
            raise UnknownAdapterError("This base model serves no adapters.")
        return self._table.lease(lora_name)


def _admission(engine: AsyncLLM, settings: AdmissionSettings | None) -> Admission:
    output_processor = engine.output_processor
    unread = output_processor.get_num_queued_tokens
    if settings is None:
        return Admission(no_limits(), unread=unread, max_wait_s=math.inf)
    config, lora = engine.vllm_config, engine.vllm_config.lora_config
    # Each of several engines of one model takes as many.
    engines = config.parallel_config.data_parallel_size
    limits = limits_of(
        settings,
        max_num_seqs=config.scheduler_config.max_num_seqs * engines,
        max_num_batched_tokens=config.scheduler_config.max_num_batched_tokens * engines,
        max_loras=lora.max_loras if lora else 0,
    )
    admission = Admission(limits, unread=unread, max_wait_s=settings.max_wait_s)
    engine.add_request = with_priority(engine.add_request)
    after_each_step(engine, admission.look)
    return admission


def after_each_step(engine: AsyncLLM, act: Callable[[], None]) -> None:
    """Have `act` called after each step of the engine, when vLLM has taken its outputs in."""
    processor = engine.output_processor
    processor.process_outputs = followed_by(processor.process_outputs, act)


def followed_by(act: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    """The same, and `then` after it."""

    def act_then(*args: Any, **options: Any) -> Any:
        result = act(*args, **options)
        then()
        return result

    return act_then


def _in_all(workers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[set[int], set[int]]:
    """The ids in the slots, and in the caches, of every worker: each has a part of an adapter."""
    slots, cached = zip(*workers, strict=True)
    return set.intersection(*map(set, slots)), set.intersection(*map(set, cached))


def _process_ids() -> list[int]:
    children = psutil.Process().children(recursive=True)
    return [os.getpid(), *sorted(process.pid for process in children)]


def _parse_request(raw: bytes) -> _EngineRequest:
    document = json.loads(raw)
    if document["endpoint"] not in ENDPOINTS:
        raise ValueError(f"there is no endpoint {document['endpoint']!r}")
    return _EngineRequest(
        endpoint=ENDPOINTS[document["endpoint"]],
        lora_name=document["lora_name"],
        served_name=document["served_name"],
        request_id=document["request_id"],
        cache_salt=document.get("cache_salt"),
        tenant=document["tenant"],
        weight=document["weight"],
        body=dict(document["body"]),
    )


def _lora_request(lora_name: str, lora_int_id: int, path: Path) -> LoRARequest:
    return LoRARequest(lora_name=lora_name, lora_int_id=lora_int_id, lora_path=str(path))


def _error(message: str, code: str | None, param: str | None = None) -> bytes:
    error = {"message": message, "type": "server_error", "param": param, "code": code}
    return json.dumps({"error": error}).encode()
