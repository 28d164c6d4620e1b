"""A worker in Python: the binary ``torture-worker`` by the API of the Python package.

Its argument is the JSON of ``torture::worker::Settings``. Its history is what
``torture::history`` reads.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import threading
import time
from contextlib import closing
from urllib.parse import unquote, urlsplit

import database_locks
from database_locks import LockException, LockLost, LockTimeout

LONGEST_PAUSE = 20.0


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000


class Commands:
    """The commands on standard input."""

    def __init__(self) -> None:
        self.stopped = False
        self.breakpoint = ""
        self.resumed = 0
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            word, _, state = line.strip().partition(" ")
            if word == "pause":
                self.breakpoint = state
            else:
                self.resumed += 1
        self.stopped = True

    def pause_at(self, state, what, look=lambda: True) -> bool:
        if self.breakpoint != state:
            return False
        self.breakpoint = ""
        before, begun = self.resumed, time.monotonic()
        print(f"paused {what}", flush=True)
        if state == "waiting":
            return True
        while self.resumed == before and not self.stopped and look():
            if time.monotonic() - begun > LONGEST_PAUSE:
                break
            time.sleep(0.005)
        return True


class History:
    def __init__(self, path: str, process: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._process = process

    def write(self, e: str, **more) -> None:
        line = json.dumps({"t": now(), "process": self._process, "e": e, **more}) + "\n"
        # One write: a process that is killed, or interrupted by a loss, has recorded all of it or nothing.
        os.write(self._file, line.encode())


def open_data(url: str):
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return sqlite3.connect(parts.path, timeout=5, isolation_level=None)
    if parts.scheme == "postgres":
        import psycopg

        return psycopg.connect(url, autocommit=True, connect_timeout=5)
    import pymysql

    return pymysql.connect(
        host=parts.hostname,
        port=parts.port,
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        database=parts.path.lstrip("/"),
        autocommit=True,
        connect_timeout=5,
        read_timeout=5,
        write_timeout=5,
    )


class Worker:
    def __init__(self, settings) -> None:
        self.settings = settings
        self.process = settings["process"]
        self.random = random.Random(settings["seed"])
        self.history = History(settings["history"], self.process)
        self.locks = database_locks.connect(settings["url"])
        self.commands = Commands()
        self.requests = 0
        self.writes = 0
        self.data = None

    def between(self, low: float, high: float) -> float:
        return self.random.uniform(low, high) / 1000

    def round(self) -> None:
        self.requests += 1
        request = self.requests
        name = self.random.choice(self.settings["locks"])
        chance = self.random.random()
        wait = 0.0 if chance < 0.15 else self.between(300, 6000) if chance < 0.6 else None
        self.commands.pause_at("asking", f"{name} 0")
        self.history.write(
            "asked", request=request, lock=name, wait=None if wait is None else int(wait * 1e6)
        )
        self.commands.pause_at("waiting", f"{name} 0")
        arguments = {"lock_name": name, "lock_ttl": self.settings["ttl_ms"] / 1000}
        if wait == 0.0:
            arguments["retry"] = None
        elif wait is not None:
            arguments["timeout"] = wait
        if self.random.random() < 0.5:
            # Half of them are interrupted by a loss; the others go on until their next check.
            arguments["lost_lock_cb"] = lambda *_: None
        granted = False
        try:
            with self.locks.lock(**arguments) as held:
                granted = True
                self.history.write("granted", request=request, token=held.token)
                lost = not self.hold(request, name, held)
                self.history.write("releasing", request=request)
            self.history.write("released", request=request, ok=not lost)
        except LockLost as error:
            self.history.write("lost", request=request, reason=error.reason or "lost")
        except LockTimeout:
            self.history.write("gave_up", request=request, why="busy")
            time.sleep(self.between(20, 120))
        except LockException as error:
            if not granted:
                self.history.write("gave_up", request=request, why=str(error))
            time.sleep(self.between(20, 120))
        time.sleep(self.between(5, 60))

    def look(self, request: int, held) -> bool:
        before = now()
        lost, lasting = held.lost, held.remaining()
        if lasting > 0:
            self.history.write(
                "trusted", request=request, before=before, lasting=int(lasting * 1e6)
            )
        elif lost:
            self.history.write("lost", request=request, reason="lost")
            return False
        return True

    def hold(self, request: int, name: str, held) -> bool:
        """Whether the lock is still held at the end."""
        what = f"{name} {held.token}"
        if not self.look(request, held):
            return False
        self.commands.pause_at(
            "holding", what, lambda: held.remaining() > 0 and self.look(request, held)
        )
        blind = held.remaining() > 0 and self.commands.pause_at("blind", what)
        if blind:
            self.write(request, name, held)
        for _ in range(30 if blind or self.random.random() < 0.08 else self.random.randint(1, 4)):
            if not self.look(request, held):
                return False
            if self.random.random() < 0.6:
                self.write(request, name, held)
            time.sleep(self.between(20, 150))
        return self.look(request, held)

    def write(self, request: int, name: str, held) -> None:
        self.writes += 1
        id = f"{self.process} {self.writes}"
        self.history.write("write", request=request, id=id)
        done = False
        try:
            if self.data is None:
                self.data = open_data(self.settings["data"])
            lasting = 3 if self.random.random() < 0.3 else None
            with closing(self.data.cursor()) as cursor:
                cursor.execute("BEGIN")
                with held.fence(cursor, lasting=lasting):
                    cursor.execute(f"SELECT value FROM torture_counter WHERE name = '{name}'")
                    (value,) = cursor.fetchone()
                    if not self.commands.pause_at("fenced", f"{name} {held.token}"):
                        time.sleep(self.between(0, 15))
                    cursor.execute(
                        f"UPDATE torture_counter SET value = {value + 1}, writes = writes + 1 "
                        f"WHERE name = '{name}'"
                    )
                    cursor.execute(
                        f"INSERT INTO torture_write SELECT name, writes, {held.token}, '{id}' "
                        f"FROM torture_counter WHERE name = '{name}'"
                    )
                    self.history.write("committing", id=id)
                    cursor.execute("COMMIT")
                    done = True
                    self.history.write("committed", id=id)
        except LockLost:
            if not done:
                self.history.write("refused", id=id, why="lost")
            self.drop_data()
            raise
        except LockException as error:
            self.history.write("failed", id=id, why=f"{type(error).__name__}: {error}")
            self.drop_data()
        except Exception as error:  # noqa: BLE001 - each driver has its own
            self.history.write("failed", id=id, why=f"{type(error).__name__}: {error}")
            self.drop_data()

    def drop_data(self) -> None:
        """Closes the connection, which rolls its transaction back."""
        data, self.data = self.data, None
        if data is not None:
            try:
                data.close()
            except Exception:  # noqa: BLE001, S110 - it may be closed already
                pass


def main() -> None:
    worker = Worker(json.loads(sys.argv[1]))
    print("ready", flush=True)
    while not worker.commands.stopped:
        worker.round()


if __name__ == "__main__":
    main()
