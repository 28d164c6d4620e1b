"""A WSGI application for gunicorn whose requests run under locks.

``LOCKS_URL`` is the database of the locks. The master imports this before it forks (``--preload``), and
holds ``master's`` from then on.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from database_locks import LockException, LockLost, connect

locks = connect(os.environ["LOCKS_URL"])
_block = locks.lock("master's", lock_ttl=6)
masters = _block.__enter__()
master = os.getpid()


def count(file: str) -> dict[str, Any]:
    """Add 1 to the number in a file, under a lock."""
    with locks.lock("count") as held:
        number = int(Path(file).read_text())
        time.sleep(0.002)
        Path(file).write_text(str(number + 1))
        return {"token": held.token}


def work(name: str, until: str) -> dict[str, Any]:
    """Hold a lock until a file is there."""
    try:
        with locks.lock(name, lock_ttl=4) as held:
            Path(f"{until}.begun").touch()
            while not Path(until).exists():
                time.sleep(0.02)
            held.check()
            return {"token": held.token}
    except LockLost as lost:
        return {"lost": lost.reason}


def inherited() -> dict[str, Any]:
    """What a worker may do with the lock of its master."""
    try:
        masters.check()
        check = "held"
    except LockException as error:
        check = getattr(error, "reason", None) or repr(error)
    return {"lost": masters.lost, "check": check}


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    view = {"/count": count, "/work": work, "/inherited": inherited}[environ["PATH_INFO"]]
    answer = view(**dict(parse_qsl(environ["QUERY_STRING"])))
    answer |= {"pid": os.getpid(), "master": master}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]
