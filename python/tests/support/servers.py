"""Servers of ``tools/testkit``, which its program ``test-servers`` starts and breaks."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from .process import tool


class Servers:
    """Servers that end when this is closed, or with this process.

    :meth:`mend` repairs all that a test has broken.
    """

    def __init__(self, *engines: str) -> None:
        self._process = subprocess.Popen(
            [tool("test-servers"), *engines],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.servers: dict[str, Server | None] = {
            name: Server(self, name, about) if about else None
            for name, about in self._answer().items()
        }
        self._proxies: list[Proxy] = []

    @property
    def postgres(self) -> Server:
        return self._server("postgres")

    @property
    def mariadb(self) -> Server:
        return self._server("mariadb")

    @property
    def mysql(self) -> Server:
        return self._server("mysql")

    def _server(self, name: str) -> Server:
        server = self.servers[name]
        if server is None:
            import pytest

            pytest.skip(f"no {name} on this machine")
        return server

    def of(self, url: str) -> Server:
        """The server that a URL leads to."""
        port = urlsplit(url).port
        (server,) = (one for one in self.servers.values() if one is not None and one.port == port)
        return server

    def proxy(self, url: str) -> Proxy:
        """A network between the test and the server of a URL, to be cut and stalled."""
        proxy = Proxy(self, **self.ask(f"proxy {url}"))
        self._proxies.append(proxy)
        return proxy

    def ask(self, command: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        answer = self._answer()
        assert "error" not in answer, answer["error"]
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"test-servers has ended: {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def mend(self) -> None:
        for server in self.servers.values():
            if server is not None:
                server.mend()
        while self._proxies:
            self._proxies.pop().close()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Server:
    """One server: ``url`` (its own database, as the superuser), ``locker_url`` (with a password),
    ``socket_url``, ``socket``, ``port``, ``data``, ``pid`` as it was started."""

    def __init__(self, servers: Servers, name: str, about: dict[str, Any]) -> None:
        self._servers = servers
        self.name = name
        self.url: str = about["url"]
        self.locker_url: str = about["locker_url"]
        self.socket_url: str = about["socket_url"]
        self.socket: str = about["socket"]
        self.port: int = about["port"]
        self.data: str = about["data"]
        self.pid: int = about["pid"]
        self._broken = ""

    def database(self) -> str:
        """Make an empty database, which ``locker`` may use too; its URL."""
        url: str = self._servers.ask(f"database {self.name}")["url"]
        return url

    def stop(self) -> None:
        """Stop the server in an orderly way: its clients see the end of their connections."""
        self._do("stop", broken="start")

    def kill(self) -> None:
        """As when the machine loses power."""
        self._do("kill", broken="start")

    def start(self) -> None:
        self._do("start")

    def restart(self) -> None:
        self._do("restart")

    def freeze(self) -> None:
        """Freeze the server: connections stay open and are accepted, without any answer."""
        self._do("freeze", broken="thaw")

    def thaw(self) -> None:
        self._do("thaw")

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def mend(self) -> None:
        if self._broken:
            self._do(self._broken)

    def _do(self, verb: str, broken: str = "") -> None:
        self._servers.ask(f"{verb} {self.name}")
        self._broken = broken


class Proxy:
    """A network that can be broken: connect to its ``url``."""

    def __init__(self, servers: Servers, proxy: str, url: str) -> None:
        self._servers = servers
        self._name = proxy
        self.url = url

    def stall(self) -> None:
        """As with a pulled cable: nothing passes, in either direction, until :meth:`resume`."""
        self._servers.ask(f"stall {self._name}")

    def stall_replies(self) -> None:
        """Drop all answers until :meth:`resume`; the server still carries out the requests."""
        self._servers.ask(f"stall-replies {self._name}")

    def resume(self) -> None:
        self._servers.ask(f"resume {self._name}")

    def cut(self) -> None:
        """Close all connections there are; new ones are accepted."""
        self._servers.ask(f"cut {self._name}")

    def refuse(self) -> None:
        """Close new connections at once, until :meth:`accept`."""
        self._servers.ask(f"refuse {self._name}")

    def accept(self) -> None:
        self._servers.ask(f"accept {self._name}")

    def counts(self) -> dict[str, int]:
        """``connections`` so far, ``open`` now, ``bytes_up`` and ``bytes_down``."""
        return self._servers.ask(f"counts {self._name}")

    def close(self) -> None:
        self._servers.ask(f"close {self._name}")
