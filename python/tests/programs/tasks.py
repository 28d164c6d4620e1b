"""Celery tasks that run under locks. The broker is a folder.

``LOCKS_URL`` is the database of the locks, ``FOLDER`` has messages and results. The worker's main process
acquires ``parent's`` when it starts, and keeps it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import worker_init

from database_locks import LockException, LockLost, connect

FOLDER = Path(os.environ["FOLDER"])
locks = connect(os.environ["LOCKS_URL"])
app = Celery("tasks", broker="filesystem://", backend=f"file://{FOLDER}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{FOLDER}/messages",
    # The sender moves messages into place, because this broker reads half-written ones.
    "data_folder_out": f"{FOLDER}/outgoing",
    "control_folder": f"{FOLDER}/control",
    "polling_interval": 0.05,
}
app.conf.broker_connection_retry_on_startup = False
app.conf.worker_prefetch_multiplier = 1
parents: Any = None


@worker_init.connect
def hold(**_: Any) -> None:
    global parents, _block
    _block = locks.lock("parent's", lock_ttl=6)
    parents = _block.__enter__()


@app.task
@locks.locked("count")
def count(file: str) -> int:
    """Add 1 to the number in a file, under a lock."""
    number = int(Path(file).read_text())
    time.sleep(0.002)
    Path(file).write_text(str(number + 1))
    return os.getpid()


@app.task
def work(name: str, until: str) -> list[Any]:
    """Hold a lock until a file is there."""
    try:
        with locks.lock(name, lock_ttl=4) as held:
            Path(f"{until}.begun").write_text(str(os.getpid()))
            while not Path(until).exists():
                time.sleep(0.02)
            held.check()
            return ["held", held.token]
    except LockLost as lost:
        return ["lost", lost.reason]
    except SoftTimeLimitExceeded:
        return ["soft time limit", None]


@app.task
def inherited() -> list[Any]:
    """What a task may do with the lock of the worker's main process."""
    try:
        parents.check()
    except LockException as error:
        return [parents.lost, getattr(error, "reason", None) or repr(error)]
    return [parents.lost, "held"]
