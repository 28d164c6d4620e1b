"""gunicorn with ``--preload``: the master holds a lock when it forks the workers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from support import Program, dblock, environment, eventually, legacy_python, sql

PROGRAMS = Path(__file__).parent / "programs"
KINDS = {
    "sync": ["-k", "sync", "-w", "3"],
    "gthread": ["-k", "gthread", "-w", "2", "--threads", "4"],
}


class Gunicorn(Program):
    """Listens on a Unix socket; ``log`` is its error log, which says what happens to it."""

    def __init__(
        self,
        url: str,
        kind: str,
        folder: Path,
        application: str = "wsgi",
        python: str = sys.executable,
    ) -> None:
        self.socket = folder / "socket"
        self.log = folder / "log"
        how = ["--preload", "-b", f"unix:{self.socket}", "--error-logfile", str(self.log)]
        super().__init__(
            [python, "-m", "gunicorn", *how, *KINDS[kind], "--log-level=debug", application],
            env=environment(LOCKS_URL=url),
            cwd=PROGRAMS,
            group=True,
        )
        eventually(self._listens, "gunicorn listens")

    def _listens(self) -> bool:
        """Asked of the socket itself: its file is there before gunicorn listens."""
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket)) == 0

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self.socket))
        try:
            connection.request("GET", f"{path}?{urlencode(query)}", headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        assert response.status == 200, f"{body!r}\n{self.log.read_text()}\n{self.stderr}"
        answer: dict[str, Any] = json.loads(body)
        return answer


@pytest.fixture(params=list(KINDS))
def gunicorn(
    request: pytest.FixtureRequest, server_url: str, tmp_path: Path
) -> Iterator[tuple[Gunicorn, str]]:
    gunicorn = Gunicorn(server_url, request.param, tmp_path)
    yield gunicorn, server_url
    gunicorn.close()


def shown(url: str, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(dblock("show", name, "--json", url=url))
    return shown


def in_background(work: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


def test_workers_exclude_each_other_and_the_masters_lock_survives(
    gunicorn: tuple[Gunicorn, str], tmp_path: Path
) -> None:
    server, url = gunicorn
    number = tmp_path / "number"
    number.write_text("0")
    before = shown(url, "master's")

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.get("/count", file=number), range(60)))
    assert number.read_text() == "60"
    assert len({answer["token"] for answer in answers}) == 60
    workers = {answer["pid"] for answer in answers}
    assert len(workers) >= 2
    assert server.pid not in workers

    inherited = server.get("/inherited")
    assert inherited["master"] == server.pid
    assert (inherited["lost"], inherited["check"]) == (True, "forked")

    # A worker that ends, and one that is killed, take nothing with them; new ones come.
    for worker, how in zip(sorted(workers), (signal.SIGTERM, signal.SIGKILL), strict=False):
        os.kill(worker, how)

    def all_new() -> bool:
        return {server.get("/inherited")["pid"] for _ in range(6)}.isdisjoint(sorted(workers)[:2])

    eventually(all_new, "new workers")
    # Longer than its ttl.
    server.goes_on(7)
    now = shown(url, "master's")
    assert (now["token"], now["holder"]) == (before["token"], before["holder"])
    server.get("/count", file=number)


def test_sigusr1_reopens_gunicorns_logs_while_a_lock_is_held(
    gunicorn: tuple[Gunicorn, str], tmp_path: Path
) -> None:
    server, url = gunicorn
    until = tmp_path / "until"
    answer = in_background(lambda: server.get("/work", name="job", until=until))
    eventually((tmp_path / "until.begun").exists, "the request holds its lock")
    token = shown(url, "job")["token"]

    server.log.rename(tmp_path / "log.1")
    server.signal(signal.SIGUSR1)
    eventually(server.log.exists, "gunicorn opens its log anew")
    # The workers get the signal too: longer than the ttl, so that it was renewed after it.
    server.goes_on(5)
    until.touch()
    assert answer.result(60)["token"] == token
    assert server.get("/inherited")["lost"] is True
    assert "Traceback" not in (tmp_path / "log.1").read_text() + server.log.read_text()


def test_a_request_that_loses_its_lock_gets_lock_lost(
    gunicorn: tuple[Gunicorn, str], tmp_path: Path
) -> None:
    server, url = gunicorn
    answer = in_background(lambda: server.get("/work", name="job", until=tmp_path / "never"))
    eventually((tmp_path / "never.begun").exists, "the request holds its lock")
    dblock("release", "job", "--force", url=url)
    assert answer.result(30)["lost"] == "forced"
    # And it goes on serving.
    server.get("/inherited")


#: Legacy takes a signal for each lock, which only a main thread may.
LEGACY = {"kind": "sync", "lock": {"auto_renew": False}, "legacy": True}
CASES = {
    "postgres": {"engine": "postgres", "kind": "gthread"},
    "mariadb": {"engine": "mariadb", "kind": "gthread"},
    "postgres-legacy": {"engine": "postgres", **LEGACY},
}


@pytest.mark.parametrize("case", list(CASES))
def test_no_update_is_lost_with_atomic_requests(
    case: str, fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    """With a plain ``with lock``, as in legacy, whatever else the request does before its commit."""
    how: dict[str, Any] = CASES[case]
    url = fresh_database(how["engine"])
    python = legacy_python() if "legacy" in how else sys.executable
    server = Gunicorn(url, how["kind"], tmp_path, "wsgi_django", python)
    lock = json.dumps(how.get("lock", {}))
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: server.get("/count", lock=lock), range(150)))
        assert len({answer["pid"] for answer in answers}) >= 2
        assert sql(url, "SELECT n FROM counter") == [(150,)]
    finally:
        server.close()
