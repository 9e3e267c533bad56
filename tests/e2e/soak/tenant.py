"""One tenant of the soak: what it changes, what it asks, and what it checks of the answers."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from adapter_sync.registry import Registry
from tests.e2e.soak.contents import ALL_QUESTIONS, Content, Question, chat
from tests.e2e.soak.model import BASE, Asked, Name, Nothing, Timeline, same_revisions
from tests.hub_server import Hub
from tests.stack_process import BASE_MODEL

# Every tenant uses the same names: one that got another's adapter would get a wrong answer.
NAMES = ("alpha", "beta", "gamma")
ALIASES = ("assistant", "canary")
READY_S = 90
STALE_ETAG = '"00000000000000000000000000000000"'
KEY_LIFE_S = 2.0
AGAIN_S = 0.1
_STATUS_OF_EVENT = {"adapter_not_ready": 503, "model_not_found": 404}


Act = Callable[[str, list[int], random.Random], Awaitable[None]]
"""A change of the adapter of a name. It adds to the list what contents it may have brought, for
when it is cut off."""


@dataclass(slots=True)
class World:
    """What all tenants share."""

    contents: Sequence[Content]
    base_answers: Mapping[Question, str]
    hub: Hub
    registry: Registry
    gateway_up: Timeline[bool] = field(default_factory=lambda: Timeline(True))
    """Whether requests reach a gateway: not while it is killed and started anew."""

    def answer_of(self, content: int, question: Question) -> str:
        """What the content, or the base model, answers."""
        answers = self.base_answers if content == BASE else self.contents[content].answers
        return answers[question]


@dataclass(slots=True)
class Key:
    """A key of the tenant's besides its first, and whether it opens anything."""

    text: str
    valid: Timeline[bool] = field(default_factory=lambda: Timeline(True))


class LostError(Exception):
    """The gateway was killed under a request: whether it did anything is not known."""


class Tenant:
    """One tenant's tasks; each method that acts at random takes the task's own generator."""

    def __init__(self, name: str, tenant_id: str, api: httpx.AsyncClient, world: World) -> None:
        self.name = name
        self.id = tenant_id
        self.names = {each: Name() for each in NAMES}
        self.ids: set[str] = set()
        """Of every adapter that it ever had."""
        self.counts = Counter[str]()
        self._aliases = {each: Timeline(frozenset[str]()) for each in ALIASES}
        self._keys: list[Key] = []
        self._api = api
        self._world = world
        self._states: Mapping[str, Timeline[Any]] = {
            **{name: each.states for name, each in self.names.items()},
            BASE_MODEL: Timeline(BASE),
        }

    async def change(self, name: str, rng: random.Random) -> None:
        """One change of the adapter of that name, with what must come of it."""
        known = self.names[name]
        actions: dict[Act, int]
        if known.id is None:
            actions = {self._put: 6, self._put_bad: 1, self._hang_up: 1}
        elif known.fetching:
            # Another revision meanwhile is a matter of who is faster: see the unit tests.
            actions = {self._await_ready: 2, self._delete: 1}
        else:
            actions = {
                self._put: 6,
                self._roll_back: 4,
                self._await_ready: 2,
                self._delete: 2,
                self._race_writers: 1,
                self._race_delete: 1,
                self._put_taken: 1,
                self._put_stale: 1,
                self._put_bad: 1,
                self._hang_up: 1,
                self._check_revisions: 2,
                self._watch: 1,
            }
        [act] = rng.choices(list(actions), list(actions.values()))
        attempts: list[int] = []
        try:
            await act(name, attempts, rng)
        except LostError:
            await self._look_again(name, attempts)
        self._count(getattr(act, "__name__", "").strip("_"))

    async def change_alias(self, alias: str, rng: random.Random) -> None:
        """Point an alias elsewhere, at one model or at several, or delete it."""
        timeline = self._aliases[alias]
        path = f"/v1/aliases/{alias}"
        wanted = frozenset(rng.sample([*NAMES, BASE_MODEL], rng.choice([1, 1, 2, 3])))
        weights = {each: rng.choice([1, 10, 90]) for each in sorted(wanted)}
        delete = rng.random() < 0.15
        was = timeline.now
        begun_s = time.monotonic()
        timeline.widen(begun_s, [frozenset() if delete else wanted])
        try:
            if delete:
                answer = await self._call("DELETE", path)
            else:
                targets = [
                    {"model": self._model(each), "weight": weight}
                    for each, weight in weights.items()
                ]
                answer = await self._call("PUT", path, json={"targets": targets})
        except LostError:
            found = await self._sure("GET", path)
            targets_now = found.json()["targets"] if found.is_success else []
            now = frozenset(each["model"].rpartition(":")[2] for each in targets_now)
            timeline.settle(time.monotonic(), [now])
            return
        if answer.status_code == 404:
            self._check_no_alias(answer, delete=delete, was=was, wanted=wanted, begun_s=begun_s)
            timeline.settle(time.monotonic(), was)
            return
        assert answer.is_success, self._told("alias", answer)
        timeline.settle(time.monotonic(), [frozenset() if delete else wanted])
        self._count("alias deleted" if delete else "alias put")

    def _check_no_alias(
        self,
        answer: httpx.Response,
        *,
        delete: bool,
        was: frozenset[frozenset[str]],
        wanted: frozenset[str],
        begun_s: float,
    ) -> None:
        if delete:
            assert was == {frozenset()}, self._told("deleting an alias that is there", answer)
            return
        absent = [
            each
            for each in wanted
            if Nothing.ABSENT in self._states[each].during(begun_s, time.monotonic())
            # An adapter on its way from a hub is no target yet.
            or Nothing.LOADING in self._states[each].during(begun_s, time.monotonic())
        ]
        assert absent, self._told("an alias of models that are there", answer)

    async def ask(self, rng: random.Random) -> None:
        """One question, whole or streamed, to an adapter, an alias or the base model."""
        name = rng.choice([*NAMES, *NAMES, *ALIASES, BASE_MODEL])
        question = rng.choice(ALL_QUESTIONS)
        key = rng.choice([None, None, *self._keys[-2:]])
        begun_s = time.monotonic()
        ask = rng.choice([self._ask_whole, self._ask_stream, self._ask_stream])
        model = self._model(name)
        try:
            status, text = await ask(model, question, key)
        except LostError:
            self._count("ask lost")
            return
        ended_s = time.monotonic()
        valid = {True} if key is None else key.valid.during(begun_s, ended_s)
        if status == 401:
            assert False in valid, f"{self.name}: a good key was refused: {text}"
            self._count("ask 401")
            return
        assert True in valid, f"{self.name}: a revoked key was let in: {status} {text}"
        if name in self._aliases:
            target_sets = self._aliases[name].during(begun_s, ended_s)
        else:
            target_sets = frozenset({frozenset({name})})
        asked = Asked(begun_s=begun_s, ended_s=ended_s, target_sets=target_sets)
        self._check_answer(asked, model, question, status, text)
        self._count(f"ask {status}")

    async def leave(self, rng: random.Random) -> None:
        """Ask for a long answer and hang up in the middle of it."""
        body = {**chat(self._model(rng.choice(NAMES)), (0, 400)), "stream": True}
        body["ignore_eos"] = True
        try:
            async with self._api.stream("POST", "/v1/chat/completions", json=body) as answer:
                lines = answer.aiter_lines()
                for _ in range(rng.randrange(12)):
                    await anext(lines, None)
        except httpx.TransportError:
            assert not self._is_up(), f"{self.name}: a stream broke"
        self._count("left")

    async def look(self, other: "Tenant", rng: random.Random) -> None:
        """See one's own adapters, and nothing of another tenant's."""
        try:
            await self._look_at(other, rng)
            await self._look_at_own()
        except LostError:
            return
        self._count("look")

    async def change_key(self, rng: random.Random) -> None:
        """Make a key, use it for a while, and revoke it."""
        issued = await asyncio.to_thread(self._world.registry.issue_key, self.name)
        key = Key(issued.text)
        self._keys.append(key)
        await asyncio.sleep(rng.random() * KEY_LIFE_S)
        key.valid.settle(time.monotonic(), [True, False])
        await asyncio.to_thread(self._world.registry.revoke_key, issued.key.id)
        key.valid.settle(time.monotonic(), [False])
        self._count("key revoked")

    async def clear(self) -> None:
        """Delete every adapter and alias; twice the same is a 404 the second time."""
        for name, known in self.names.items():
            if known.id is not None:
                path = f"/v1/adapters/{known.id}"
                assert (await self._sure("DELETE", path)).is_success, name
                known.vanish(time.monotonic())
                assert (await self._sure("DELETE", path)).status_code == 404, name
        for alias in ALIASES:
            await self._sure("DELETE", f"/v1/aliases/{alias}")
        for path in ("/v1/adapters", "/v1/aliases"):
            listed = (await self._sure("GET", path)).json()["data"]
            assert listed == [], listed

    # Changes.

    async def _put(self, name: str, attempts: list[int], rng: random.Random) -> None:
        """A new adapter or revision, waited for or not."""
        known = self.names[name]
        content = self._draw(rng)
        attempts.append(content)
        known.begin(time.monotonic(), content, *([Nothing.LOADING] if known.id is None else []))
        headers = {"Prefer": f"wait={rng.choice([0, 0, READY_S])}"}
        if known.etag is not None and rng.random() < 0.3:
            headers["If-Match"] = known.etag
        send = rng.choice([self._send_files, self._send_files, self._send_zip, self._send_repo])
        answer = await send(name, content, headers)
        assert answer.status_code in (200, 201, 202), self._told(f"put {name}", answer)
        self._take(name, answer, content)

    async def _roll_back(self, name: str, attempts: list[int], rng: random.Random) -> None:
        known = self.names[name]
        path = f"/v1/adapters/{known.id}/rollback"
        *earlier, newest = known.kept()
        number = rng.choice([None, *earlier, newest])
        if number is None and not earlier:
            answer = await self._call("POST", path)
            assert answer.status_code == 409, self._told(f"roll back {name}", answer)
            return
        content = known.revisions[earlier[-1] if number is None else number]
        attempts.append(content)
        known.begin(time.monotonic(), content)
        answer = await self._call(
            "POST",
            path,
            headers={"Prefer": f"wait={rng.choice([0, READY_S])}"},
            json={"revision": number},
        )
        assert answer.is_success, self._told(f"roll back {name}", answer)
        self._take(name, answer, content)

    async def _await_ready(self, name: str, _attempts: list[int], _rng: random.Random) -> None:
        """Until the newest revision serves, which every content that is sent must come to."""
        known = self.names[name]
        deadline_s = time.monotonic() + READY_S
        while True:
            answer = await self._sure("GET", f"/v1/adapters/{known.id}")
            assert answer.is_success, self._told(f"await {name}", answer)
            document = answer.json()
            assert "failed" not in (document["status"], document["progress"]["stage"]), document
            if document["status"] == "ready" and not _is_fetching(document):
                break
            assert time.monotonic() < deadline_s, f"{self.name}: {name} never came: {document}"
            await asyncio.sleep(AGAIN_S)
        assert document["revision"] == document["serving_revision"] == known.newest, document
        content = known.revisions[known.newest]
        assert document["lora_alpha"] == self._world.contents[content].lora_alpha, document
        known.fetching = False
        known.etag = document["etag"]
        known.states.settle(time.monotonic(), [content])

    async def _delete(self, name: str, _attempts: list[int], _rng: random.Random) -> None:
        known = self.names[name]
        path = f"/v1/adapters/{known.id}"
        known.begin(time.monotonic(), Nothing.ABSENT)
        answer = await self._call("DELETE", path)
        assert answer.is_success, self._told(f"delete {name}", answer)
        known.vanish(time.monotonic())
        again = await self._sure("DELETE", path)
        assert again.status_code == 404, self._told(f"delete {name} again", again)

    async def _race_writers(self, name: str, attempts: list[int], rng: random.Random) -> None:
        """Of two writers that name the same ETag exactly one wins."""
        known = self.names[name]
        contents = rng.sample(range(len(self._world.contents)), 2)
        attempts += contents
        known.begin(time.monotonic(), *contents)
        headers = {"Prefer": "wait=0", "If-Match": known.etag or ""}
        answers = await self._together(
            *(self._send_files(name, each, dict(headers)) for each in contents)
        )
        statuses = sorted(each.status_code for each in answers)
        assert statuses == [200, 412], f"{self.name}: {[each.text for each in answers]}"
        [(answer, content)] = [
            (each, content)
            for each, content in zip(answers, contents, strict=True)
            if each.is_success
        ]
        self._take(name, answer, content)

    async def _race_delete(self, name: str, attempts: list[int], rng: random.Random) -> None:
        """A replacement and a deletion at once: either order is right, and nothing between."""
        known = self.names[name]
        content = self._draw(rng)
        attempts.append(content)
        old_id = known.id
        known.begin(time.monotonic(), content, Nothing.ABSENT, Nothing.LOADING)
        put, deleted = await self._together(
            self._send_files(name, content, {"Prefer": "wait=0"}),
            self._call("DELETE", f"/v1/adapters/{old_id}"),
        )
        assert deleted.is_success, self._told(f"delete {name} in a race", deleted)
        if put.status_code == 201:
            known.vanish(time.monotonic())
            self._take(name, put, content)
            assert known.id != old_id
        else:
            # The new revision went with its adapter.
            assert put.status_code in (200, 404), self._told(f"put {name} in a race", put)
            known.vanish(time.monotonic())

    async def _put_taken(self, name: str, _attempts: list[int], rng: random.Random) -> None:
        content = self._world.contents[self._draw(rng)]
        answer = await self._upload(name, content.files, replace=False, headers={})
        assert answer.status_code == 409, self._told(f"put {name}, which is taken", answer)

    async def _put_stale(self, name: str, _attempts: list[int], rng: random.Random) -> None:
        content = self._world.contents[self._draw(rng)]
        headers = {"If-Match": STALE_ETAG}
        answer = await self._upload(name, content.files, replace=True, headers=headers)
        assert answer.status_code == 412, self._told(f"put {name} with a stale ETag", answer)

    async def _put_bad(self, name: str, _attempts: list[int], rng: random.Random) -> None:
        """Files that are no adapter change nothing."""
        content = self._world.contents[self._draw(rng)]
        cut = rng.randrange(1, len(content.weights))
        files = rng.choice(
            [
                {"file": ("a.safetensors", content.weights[:cut])},
                {"file": ("a.zip", content.zipped()[:cut])},
                {**content.files, "config": ("adapter_config.json", b'{"r": 8}')},
            ]
        )
        answer = await self._upload(name, files, replace=True, headers={})
        assert answer.status_code == 400, self._told(f"put {name} with broken files", answer)

    async def _hang_up(self, name: str, _attempts: list[int], rng: random.Random) -> None:
        """An upload whose client leaves in the middle changes nothing."""
        content = self._world.contents[self._draw(rng)]
        request = self._upload_request(name, content.files, replace=True, headers={})
        await request.aread()
        body = request.content[: rng.randrange(len(request.content))]

        async def broken() -> Any:
            yield body
            raise asyncio.IncompleteReadError(body, None)

        headers = {**request.headers, "content-length": str(len(request.content))}
        try:
            answer = await self._api.post(request.url, content=broken(), headers=headers)
        except (asyncio.IncompleteReadError, httpx.TransportError):
            return
        raise AssertionError(self._told("half an upload", answer))

    async def _check_revisions(self, name: str, _attempts: list[int], _rng: random.Random) -> None:
        known = self.names[name]
        answer = await self._call("GET", f"/v1/adapters/{known.id}/revisions")
        assert answer.is_success, self._told(f"revisions of {name}", answer)
        found = {each["number"]: self._content_of(each) for each in answer.json()["data"]}
        assert set(known.kept()) <= set(found), self._told(f"revisions of {name}", answer)
        # The serving one is kept too when it is older.
        assert len(found) <= len(known.kept()) + 1, self._told(f"revisions of {name}", answer)
        assert same_revisions(known.revisions, found, ()), self._told(f"of {name}", answer)

    async def _watch(self, name: str, _attempts: list[int], _rng: random.Random) -> None:
        """Its events end with the adapter ready: nothing else is done to it meanwhile."""
        known = self.names[name]
        path = f"/v1/adapters/{known.id}/events"
        try:
            async with self._api.stream("GET", path) as answer:
                assert answer.is_success, f"{self.name}: events of {name}: {answer}"
                lines = [each async for each in answer.aiter_lines()]
        except httpx.TransportError as error:
            raise self._lost(error) from error
        documents = [
            json.loads(each.removeprefix("data: ")) for each in lines if each.startswith("data: ")
        ]
        assert documents, f"{self.name}: no events of {name}"
        assert {each["id"] for each in documents} == {known.id}, documents
        assert documents[-1]["status"] == "ready", documents
        known.states.settle(time.monotonic(), [known.revisions[known.newest]])

    async def _look_again(self, name: str, attempts: Sequence[int]) -> None:
        """After a request that was cut off: what is there must have come of what was tried."""
        known = self.names[name]
        adapters = (await self._sure("GET", "/v1/adapters", params={"limit": 100})).json()["data"]
        found = {each["id"]: each for each in adapters if each["name"] == name}
        assert len(found) <= 1, found
        now_s = time.monotonic()
        if not found:
            assert Nothing.ABSENT in known.states.now, f"{self.name}: {name} is lost"
            known.vanish(now_s)
            return
        [adapter] = found.values()
        if adapter["id"] != known.id:
            known.id, known.revisions = adapter["id"], {}
            self.ids.add(adapter["id"])
        known.etag = adapter["etag"]
        kept = await self._sure("GET", f"/v1/adapters/{known.id}/revisions")
        if kept.status_code == 404:
            # Not here yet: on its way from a hub.
            revisions: dict[int, int] = {}
        else:
            revisions = {each["number"]: self._content_of(each) for each in kept.json()["data"]}
        assert same_revisions(known.revisions, revisions, attempts), (known, revisions, attempts)
        for number, content in sorted(revisions.items()):
            known.revisions[number] = content
        known.fetching = _is_fetching(adapter)
        if known.fetching:
            known.revisions[max(known.revisions, default=0) + 1] = attempts[-1]
        if Nothing.ABSENT in known.states.now:
            known.states.settle(now_s, known.states.now - {Nothing.ABSENT} | {Nothing.LOADING})
        await self._await_ready(name, [], random.Random(0))  # noqa: S311

    def _take(self, name: str, answer: httpx.Response, content: int) -> None:
        """Note the revision that the answer tells of."""
        known = self.names[name]
        document = answer.json()
        assert document["status"] != "failed", document
        assert known.id in (None, document["id"]), document
        now_s = time.monotonic()
        if _is_fetching(document):
            known.fetching = True
            number = max(known.revisions, default=0) + 1
        else:
            number = document["revision"]
            assert self._content_of(document) == content, document
            assert number == max(known.revisions, default=0) + 1, (document, known)
        known.id, known.etag = document["id"], document["etag"]
        self.ids.add(document["id"])
        ready = document["status"] == "ready" and not known.fetching
        known.revise(now_s, number, content, ready=ready)

    # Ways in.

    async def _send_files(self, name: str, content: int, headers: dict[str, str]) -> httpx.Response:
        files = self._world.contents[content].files
        return await self._upload(name, files, replace=True, headers=headers)

    async def _send_zip(self, name: str, content: int, headers: dict[str, str]) -> httpx.Response:
        files = {"file": ("customer.zip", self._world.contents[content].zipped())}
        return await self._upload(name, files, replace=True, headers=headers)

    async def _send_repo(self, name: str, content: int, headers: dict[str, str]) -> httpx.Response:
        body = {
            "name": name,
            "base_model": BASE_MODEL,
            "repo": repo_of(content),
            "replace": True,
        }
        return await self._call("POST", "/v1/adapters", json=body, headers=headers)

    async def _upload(
        self,
        name: str,
        files: Mapping[str, tuple[str, bytes]],
        *,
        replace: bool,
        headers: Mapping[str, str],
    ) -> httpx.Response:
        request = self._upload_request(name, files, replace=replace, headers=headers)
        try:
            return await self._api.send(request)
        except httpx.TransportError as error:
            raise self._lost(error) from error

    def _upload_request(
        self,
        name: str,
        files: Mapping[str, tuple[str, bytes]],
        *,
        replace: bool,
        headers: Mapping[str, str],
    ) -> httpx.Request:
        data = {"name": name, "base_model": BASE_MODEL, "replace": str(replace).lower()}
        return self._api.build_request(
            "POST", "/v1/adapters/upload", data=data, files=files, headers=headers
        )

    # Questions.

    def _check_answer(
        self, asked: Asked, model: str, question: Question, status: int, text: str
    ) -> None:
        contents = asked.contents(self._states)
        refusals = asked.refusals(self._states)
        where = (
            f"{self.name} asked {model} {question} for {asked.ended_s - asked.begun_s:.2f} s and "
            f"got {status} {text!r}; it may be of {sorted(contents)}, or {refusals}"
        )
        if status == 404:
            assert Nothing.ABSENT in refusals, where
        elif status == 503:
            assert "adapter_not_ready" in text, where
            assert Nothing.LOADING in refusals, where
        else:
            assert status == 200, where
            right = {self._world.answer_of(each, question) for each in contents}
            assert text in right, where

    async def _ask_whole(self, model: str, question: Question, key: Key | None) -> tuple[int, str]:
        answer = await self._call(
            "POST", "/v1/chat/completions", json=chat(model, question), headers=_bearer(key)
        )
        if not answer.is_success:
            return answer.status_code, answer.text
        document = answer.json()
        assert document["model"] == model, document
        return 200, document["choices"][0]["message"]["content"]

    async def _ask_stream(self, model: str, question: Question, key: Key | None) -> tuple[int, str]:
        body = {**chat(model, question), "stream": True}
        lines: list[str] = []
        try:
            async with self._api.stream(
                "POST", "/v1/chat/completions", json=body, headers=_bearer(key)
            ) as answer:
                if not answer.is_success:
                    return answer.status_code, (await answer.aread()).decode()
                lines += [each async for each in answer.aiter_lines()]
        except httpx.TransportError as error:
            raise self._lost(error) from error
        events = [each.removeprefix("data: ") for each in lines if each.startswith("data: ")]
        if events[-1:] != ["[DONE]"]:
            if not self._is_up():
                raise LostError
            # One that was kept busy while it waited tells of a refusal in the stream itself.
            last = json.loads(events[-1]) if events else {}
            code = last.get("error", {}).get("code")
            return _STATUS_OF_EVENT.get(code, 500), "\n".join(lines)
        pieces = [
            choice["delta"].get("content") or ""
            for each in events[:-1]
            for choice in json.loads(each)["choices"]
        ]
        return 200, "".join(pieces)

    # Looking.

    async def _look_at(self, other: "Tenant", rng: random.Random) -> None:
        theirs = sorted(other.ids)
        if not theirs:
            return
        adapter = f"/v1/adapters/{rng.choice(theirs)}"
        method, path = rng.choice(
            [
                ("GET", adapter),
                ("DELETE", adapter),
                ("GET", f"{adapter}/revisions"),
                ("POST", f"{adapter}/rollback"),
                ("GET", f"{adapter}/events"),
            ]
        )
        answer = await self._call(method, path)
        assert answer.status_code == 404, self._told(f"{method} {path} of {other.name}", answer)

    async def _look_at_own(self) -> None:
        begun_s = time.monotonic()
        adapters = (await self._call("GET", "/v1/adapters", params={"limit": 100})).json()["data"]
        ended_s = time.monotonic()
        listed = [each["name"] for each in adapters]
        assert len(set(listed)) == len(listed), adapters
        for name, known in self.names.items():
            states = known.states.during(begun_s, ended_s)
            if name in listed:
                assert states != {Nothing.ABSENT}, f"{self.name}: {name} is listed: {adapters}"
            else:
                assert Nothing.ABSENT in states, f"{self.name}: {name} is not listed: {adapters}"
        begun_s = time.monotonic()
        models = (await self._call("GET", "/v1/models")).json()["data"]
        ended_s = time.monotonic()
        for each in models:
            name = each["id"].rpartition(":")[2]
            assert name in {*self._states, *ALIASES}, f"{self.name} sees {each}"
            if name in self.names:
                states = self.names[name].states.during(begun_s, ended_s)
                assert any(isinstance(state, int) for state in states), (self.name, models)

    # Requests.

    async def _call(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Raises LostError when the gateway was killed under it."""
        try:
            return await self._api.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise self._lost(error) from error

    async def _sure(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """The same again until it is answered; for what may be done twice."""
        while True:
            try:
                return await self._call(method, path, **arguments)
            except LostError:
                await asyncio.sleep(AGAIN_S)

    async def _together(self, *calls: Awaitable[httpx.Response]) -> list[httpx.Response]:
        """All at once, and all to their end. Raises LostError."""
        answers = await asyncio.gather(*calls, return_exceptions=True)
        for each in answers:
            if isinstance(each, BaseException):
                raise each
        return [each for each in answers if isinstance(each, httpx.Response)]

    def _lost(self, error: httpx.TransportError) -> LostError:
        assert not self._is_up(), f"{self.name}: a request broke: {error!r}"
        return LostError()

    def _is_up(self) -> bool:
        """Whether the gateway has been up for a while: a broken connection may tell late."""
        now_s = time.monotonic()
        return False not in self._world.gateway_up.during(now_s - 1, now_s)

    def _draw(self, rng: random.Random) -> int:
        return rng.randrange(len(self._world.contents))

    def _content_of(self, document: Mapping[str, Any]) -> int:
        alphas = [each.lora_alpha for each in self._world.contents]
        return alphas.index(document["lora_alpha"])

    def _model(self, name: str) -> str:
        return f"{BASE_MODEL}:{name}" if name in self.names else name

    def _told(self, what: str, answer: httpx.Response) -> str:
        return f"{self.name}: {what}: {answer.status_code} {answer.text}"

    def _count(self, what: str) -> None:
        self.counts[what] += 1


def repo_of(content: int) -> str:
    """The hub's repo that has the content."""
    return f"soak/content-{content}"


def _is_fetching(document: Mapping[str, Any]) -> bool:
    """Whether a first or a next revision is on its way from a hub."""
    return document["progress"]["stage"] in ("pending", "fetching", "validating")


def _bearer(key: Key | None) -> dict[str, str]:
    return {} if key is None else {"Authorization": f"Bearer {key.text}"}
