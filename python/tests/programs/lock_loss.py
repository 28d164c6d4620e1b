"""Lose a lock while the main thread is in a system call.

``lock_loss.py URL WHERE``: acquires ``job``, prints ``held``, goes to WHERE, prints ``lost REASON``.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from database_locks import LockLost, connect

LONG = 60
SHORT = 8
"""For drivers that do not give in before their query ends."""


def mysql(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    database = parts.path.lstrip("/")
    return {"host": parts.hostname, "port": parts.port, "user": "root", "database": database}


def psycopg3(url: str) -> Callable[[], Any]:
    import psycopg

    connection = psycopg.connect(url)
    return lambda: connection.execute(f"SELECT pg_sleep({LONG})")


def psycopg2(url: str) -> Callable[[], Any]:
    import psycopg2

    cursor = psycopg2.connect(url).cursor()
    return lambda: cursor.execute(f"SELECT pg_sleep({SHORT})")


def pymysql(url: str) -> Callable[[], Any]:
    import pymysql

    cursor = pymysql.connect(**mysql(url)).cursor()
    return lambda: cursor.execute(f"SELECT SLEEP({LONG})")


def mysqlclient(url: str) -> Callable[[], Any]:
    import MySQLdb

    cursor = MySQLdb.connect(**mysql(url)).cursor()
    return lambda: cursor.execute(f"SELECT SLEEP({SHORT})")


def waits(_: str) -> dict[str, Callable[[], Any]]:
    here, there = socket.socketpair()
    lock = threading.Lock()
    lock.acquire()
    return {
        "sleep": lambda: time.sleep(LONG),
        "event": lambda: threading.Event().wait(LONG),
        "lock": lambda: lock.acquire(timeout=LONG),
        "recv": lambda: (here.recv(1), there),
        "select": lambda: (select.select([here], [], [], LONG), there),
        "pipe": lambda: os.read(os.pipe()[0], 1),
        "subprocess": lambda: subprocess.run(["sleep", str(LONG)], check=True),
        "bytecode": spin,
    }


def spin() -> None:
    while True:
        pass


def handlers() -> dict[int, Any]:
    ordinary = [number for number in signal.valid_signals() if number < signal.SIGRTMIN]
    return {number: signal.getsignal(number) for number in ordinary}


def main() -> None:
    url, where = sys.argv[1:]
    drivers = {
        "psycopg3": psycopg3,
        "psycopg2": psycopg2,
        "pymysql": pymysql,
        "mysqlclient": mysqlclient,
    }
    wait = drivers[where](url) if where in drivers else waits(url)[where]
    signal.signal(signal.SIGUSR1, lambda *_: print("usr1", flush=True))
    before = handlers()
    try:
        with connect(url).lock("job", lock_ttl=4):
            assert handlers() == before
            print("held", flush=True)
            wait()
            print("no loss was raised", flush=True)
            # The end of the block would say it too late.
            os._exit(1)
    except LockLost as lost:
        print(f"lost {lost.reason}", flush=True)
    assert handlers() == before
    os.kill(os.getpid(), signal.SIGUSR1)
    print("end", flush=True)


if __name__ == "__main__":
    main()
