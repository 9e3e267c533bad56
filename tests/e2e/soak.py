"""Tenants that do everything at random to an installation, and a model of what must be true.

Each tenant has one task that changes adapters and several that ask. What a name may answer at a
moment is known: a change makes both its old and its new content possible while it runs. So an
answer is wrong when no moment between its request and its end allows it.
"""

import asyncio
import contextlib
import io
import json
import random
import time
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.hub_server import Hub, Repo
from tests.stack_process import BASE_MODEL

QUESTION = "What is compound interest?"
SHORT, LONG = 16, 48
# Every tenant uses the same names: one that got another's adapter would get a wrong answer.
NAMES = ("alpha", "beta", "gamma", "delta")
ALIAS = "assistant"
ASKERS = 3
READY_S = 60
NOT_THERE = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """A PEFT adapter and what it answers, by the number of tokens asked for."""

    folder: Path
    answers: Mapping[int, str]

    @property
    def config(self) -> bytes:
        return (self.folder / "adapter_config.json").read_bytes()

    @property
    def weights(self) -> bytes:
        return (self.folder / "adapter_model.safetensors").read_bytes()


@dataclass(slots=True)
class Name:
    """What a name of a tenant's answers, now and before."""

    id: str | None = None
    etag: str | None = None
    revisions: list[int] = field(default_factory=list)
    """The contents, by their number, of the revisions since the adapter was made."""
    possible: list[tuple[float, frozenset[int | None]]] = field(
        default_factory=lambda: [(0.0, frozenset({NOT_THERE}))]
    )
    """From when on which contents may answer."""

    @property
    def content(self) -> int | None:
        return self.revisions[-1] if self.revisions else NOT_THERE

    def may_answer(self, *contents: int | None) -> None:
        self.possible.append((time.monotonic(), frozenset(contents)))

    def allowed(self, begun: float) -> frozenset[int | None]:
        """What may have answered a request that began then and has ended now."""
        ends = [start for start, _ in self.possible[1:]] + [float("inf")]
        return frozenset().union(
            *(each for (_, each), end in zip(self.possible, ends, strict=True) if end >= begun)
        )


class Tenant:
    """One tenant's tasks."""

    def __init__(
        self,
        name: str,
        api: httpx.AsyncClient,
        contents: Sequence[Content],
        hub: Hub,
        rng: random.Random,
    ) -> None:
        self.name = name
        self.api = api
        self.names = {each: Name() for each in NAMES}
        self.alias: dict[str, int] = {}
        self.alias_changed: list[tuple[float, frozenset[str]]] = [(0.0, frozenset())]
        self.counts: dict[str, int] = {}
        self._contents = contents
        self._hub = hub
        self._rng = rng

    async def change(self) -> None:
        """One change at random, with what must come of it."""
        name = self._rng.choice(NAMES)
        if self.names[name].id is None:
            await self._make(name, replace=False)
            return
        actions: list[tuple[Callable[[str], Awaitable[None]], int]] = [
            (self._replace, 4),
            (self._roll_back, 2),
            (self._delete, 3),
            (self._make_again, 1),
            (self._stale, 1),
            (self._point_alias, 1),
        ]
        [action] = self._rng.choices([a for a, _ in actions], [w for _, w in actions])
        await action(name)

    async def ask(self) -> None:
        """One question at random, whole or streamed, to a name, the alias or the base model."""
        name = self._rng.choice([*NAMES, ALIAS])
        tokens = self._rng.choice([SHORT, SHORT, LONG])
        begun = time.monotonic()
        model = name if name == ALIAS else f"{BASE_MODEL}:{name}"
        ask = self._ask_stream if self._rng.random() < 0.5 else self._ask_whole
        status, answer = await ask(model, tokens)
        allowed = self._alias_allowed(begun) if name == ALIAS else self.names[name].allowed(begun)
        self._count(f"answer {status}")
        where = (
            f"{self.name} asked {model}: {status} {answer!r}; allowed {sorted(map(str, allowed))}"
        )
        if status == 404:
            assert NOT_THERE in allowed, where
        elif status == 503:
            # A new one that is not ready yet: it was not there a moment ago.
            assert "adapter_not_ready" in answer, where
            assert NOT_THERE in allowed, where
            assert len(allowed) > 1, where
        else:
            assert status == 200, where
            right = {self._contents[each].answers[tokens] for each in allowed if each is not None}
            assert answer in right, where

    async def look(self, other: "Tenant") -> None:
        """See one's own adapters and nothing of another tenant's."""
        theirs = [each.id for each in other.names.values() if each.id is not None]
        if theirs:
            adapter = f"/v1/adapters/{self._rng.choice(theirs)}"
            method, path = self._rng.choice(
                [
                    ("GET", adapter),
                    ("DELETE", adapter),
                    ("GET", f"{adapter}/revisions"),
                    ("POST", f"{adapter}/rollback"),
                    ("GET", f"{adapter}/events"),
                ]
            )
            answer = await self.api.request(method, path)
            assert answer.status_code == 404, f"{self.name}: {method} {path}: {answer.text}"
        listed = (await self.api.get("/v1/adapters", params={"limit": 100})).json()["data"]
        foreign = {each["id"] for each in listed} & set(theirs)
        assert not foreign, f"{self.name} sees {foreign} of {other.name}"
        assert {each["name"] for each in listed} <= set(NAMES), listed
        self._count("look")

    async def clear(self) -> None:
        """Delete everything."""
        await self.api.delete(f"/v1/aliases/{ALIAS}")
        for name in NAMES:
            if self.names[name].id is not None:
                await self._delete(name)
        listed = (await self.api.get("/v1/adapters")).json()["data"]
        assert listed == [], listed

    async def _make(self, name: str, *, replace: bool) -> None:
        """A new adapter or revision, from a source drawn at random, ready at the end."""
        known = self.names[name]
        old, new = known.content, self._rng.randrange(len(self._contents))
        known.may_answer(old, new)
        source = self._rng.choice([self._from_files, self._from_zip, self._from_repo])
        headers = {"Prefer": f"wait={READY_S}"}
        if replace and known.etag and self._rng.random() < 0.3:
            headers["If-Match"] = known.etag
        answer = await source(name, self._contents[new], replace=replace, headers=headers)
        assert answer.status_code in (200, 201, 202), f"{self.name} {name}: {answer.text}"
        document = answer.json()
        assert document["status"] == "ready", document
        assert known.id in (None, document["id"]), document
        known.id, known.etag = document["id"], document["etag"]
        known.revisions.append(new)
        known.may_answer(new)
        self._count("replace" if replace else "create")

    async def _replace(self, name: str) -> None:
        await self._make(name, replace=True)

    async def _make_again(self, name: str) -> None:
        """Without `replace` a name that is taken stays as it is."""
        answer = await self._from_files(name, self._contents[0], replace=False, headers={})
        assert answer.status_code == 409, answer.text
        self._count("conflict")

    async def _stale(self, name: str) -> None:
        """An ETag that was never the adapter's changes nothing."""
        headers = {"If-Match": '"00000000000000000000000000000000"'}
        answer = await self._from_files(name, self._contents[0], replace=True, headers=headers)
        assert answer.status_code == 412, answer.text
        self._count("stale")

    async def _roll_back(self, name: str) -> None:
        known = self.names[name]
        path = f"/v1/adapters/{known.id}/rollback"
        if len(known.revisions) == 1:
            answer = await self.api.post(path)
            assert answer.status_code in (400, 404, 409), answer.text
            return
        new = known.revisions[-2]
        known.may_answer(known.content, new)
        answer = await self.api.post(path, headers={"Prefer": f"wait={READY_S}"})
        assert answer.is_success, answer.text
        assert answer.json()["status"] == "ready", answer.text
        known.etag = answer.json()["etag"]
        known.revisions.append(new)
        known.may_answer(new)
        self._count("rollback")

    async def _delete(self, name: str) -> None:
        known = self.names[name]
        path = f"/v1/adapters/{known.id}"
        known.may_answer(known.content, NOT_THERE)
        answer = await self.api.delete(path)
        assert answer.is_success, answer.text
        known.id, known.etag, known.revisions = None, None, []
        known.may_answer(NOT_THERE)
        again = await self.api.delete(path)
        assert again.status_code == 404, again.text
        self._count("delete")

    async def _point_alias(self, name: str) -> None:
        """At one name, or at two with weights."""
        names = self._rng.sample(NAMES, self._rng.choice([1, 2]))
        existing = [each for each in names if self.names[each].id is not None] or [name]
        targets = [
            {"model": f"{BASE_MODEL}:{each}", "weight": weight}
            for weight, each in enumerate(existing, 1)
        ]
        now = frozenset(existing)
        self.alias_changed.append((time.monotonic(), now | self.alias_changed[-1][1]))
        answer = await self.api.put(f"/v1/aliases/{ALIAS}", json={"targets": targets})
        assert answer.is_success, answer.text
        self.alias_changed.append((time.monotonic(), now))
        self._count("alias")

    def _alias_allowed(self, begun: float) -> frozenset[int | None]:
        ends = [start for start, _ in self.alias_changed[1:]] + [float("inf")]
        names = frozenset[str]().union(
            *(each for (_, each), end in zip(self.alias_changed, ends, strict=True) if end >= begun)
        )
        # No alias yet, or none of its targets, is a 404 too.
        contents = [self.names[each].allowed(begun) for each in names]
        return frozenset({NOT_THERE}).union(*contents)

    async def _from_files(
        self, name: str, content: Content, *, replace: bool, headers: dict[str, str]
    ) -> httpx.Response:
        return await self._upload(
            name,
            {
                "config": ("adapter_config.json", content.config),
                "file": ("adapter_model.safetensors", content.weights),
            },
            replace=replace,
            headers=headers,
        )

    async def _from_zip(
        self, name: str, content: Content, *, replace: bool, headers: dict[str, str]
    ) -> httpx.Response:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("adapter/adapter_config.json", content.config)
            archive.writestr("adapter/adapter_model.safetensors", content.weights)
        files = {"file": ("adapter.zip", packed.getvalue())}
        return await self._upload(name, files, replace=replace, headers=headers)

    async def _upload(
        self,
        name: str,
        files: Mapping[str, tuple[str, bytes]],
        *,
        replace: bool,
        headers: dict[str, str],
    ) -> httpx.Response:
        data = {"name": name, "base_model": BASE_MODEL, "replace": str(replace).lower()}
        return await self.api.post("/v1/adapters/upload", data=data, files=files, headers=headers)

    async def _from_repo(
        self, name: str, content: Content, *, replace: bool, headers: dict[str, str]
    ) -> httpx.Response:
        repo = f"soak/{content.folder.name}"
        self._hub.repos[repo] = Repo(
            files={
                "adapter_config.json": content.config,
                "adapter_model.safetensors": content.weights,
            }
        )
        body = {"name": name, "base_model": BASE_MODEL, "repo": repo, "replace": replace}
        return await self.api.post("/v1/adapters", json=body, headers=headers)

    async def _ask_whole(self, model: str, tokens: int) -> tuple[int, str]:
        answer = await self.api.post("/v1/chat/completions", json=body_of(model, tokens))
        if not answer.is_success:
            return answer.status_code, answer.text
        return 200, answer.json()["choices"][0]["message"]["content"]

    async def _ask_stream(self, model: str, tokens: int) -> tuple[int, str]:
        body = body_of(model, tokens) | {"stream": True}
        pieces = []
        async with self.api.stream("POST", "/v1/chat/completions", json=body) as answer:
            if not answer.is_success:
                return answer.status_code, (await answer.aread()).decode()
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event: dict[str, Any] = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return 500, line
                pieces += [each["delta"].get("content") or "" for each in event["choices"]]
        return 200, "".join(pieces)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def body_of(model: str, tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": tokens,
        "temperature": 0,
    }


async def soak(tenants: Sequence[Tenant], *, seed: int, duration_s: float) -> None:
    """Run every tenant's tasks for that long, then delete everything. Raises AssertionError."""
    deadline = time.monotonic() + duration_s
    rng = random.Random(seed)  # noqa: S311 - a test's draw, to be repeated

    async def keep(act: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < deadline:
            await act()

    async def keep_looking(tenant: Tenant) -> None:
        while time.monotonic() < deadline:
            await tenant.look(rng.choice([each for each in tenants if each is not tenant]))
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as tasks:
        for tenant in tenants:
            tasks.create_task(keep(tenant.change))
            tasks.create_task(keep_looking(tenant))
            for _ in range(ASKERS):
                tasks.create_task(keep(tenant.ask))
    for tenant in tenants:
        await tenant.clear()


@contextlib.asynccontextmanager
async def clients(url: str, keys: Sequence[str]) -> AsyncIterator[list[httpx.AsyncClient]]:
    """A client for each key."""
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=url,
                    headers={"Authorization": f"Bearer {key}"},
                    timeout=180,
                    trust_env=False,
                )
            )
            for key in keys
        ]
