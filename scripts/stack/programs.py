"""Supervisord's programs, over its XML-RPC API. http://supervisord.org/api.html."""

import contextlib
import socket as sockets
import xmlrpc.client
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from supervisor.states import ProcessStates
from supervisor.xmlrpc import SupervisorTransport

ANSWER_WITHIN_S = 5.0
_ANSWERS_NOT = (OSError, HTTPException, xmlrpc.client.Error)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One that supervisord has given up."""

    name: str
    reason: str
    """In supervisord's words."""


class Programs:
    """Those of the supervisord behind a Unix socket; one that is away has none."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def given_up(self) -> list[Program]:
        """Those that ended too soon too often, and are not started again by themselves."""
        told = self._ask("getAllProcessInfo")
        return [
            Program(name=each["name"], reason=each["spawnerr"])
            for each in told or []
            if each["state"] == ProcessStates.FATAL
        ]

    def start(self, name: str) -> None:
        """Start a program again, without waiting for it."""
        self._ask("startProcess", name, False)  # noqa: FBT003 - XML-RPC knows no names

    def kill(self, name: str) -> None:
        """Have a program's process killed; supervisord starts it again."""
        self._ask("signalProcess", name, "KILL")

    def _ask(self, method: str, *arguments: Any) -> Any:
        # A transport of its own each time: one whose connection failed can't be used again.
        transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        transport._get_connection = partial(_connection, self._socket)  # noqa: SLF001 - for its deadline
        # The address is the transport's; this one only has to look like one.
        proxy: Any = xmlrpc.client.ServerProxy("http://supervisor", transport=transport)
        with contextlib.suppress(*_ANSWERS_NOT), contextlib.closing(transport):
            return getattr(proxy.supervisor, method)(*arguments)
        return None


def _connection(socket: Path) -> HTTPConnection:
    """One with a deadline: a supervisord that is stopped takes connections and never answers."""
    connection = HTTPConnection("localhost")
    connection.sock = sockets.socket(sockets.AF_UNIX)
    connection.sock.settimeout(ANSWER_WITHIN_S)
    connection.sock.connect(str(socket))
    return connection
