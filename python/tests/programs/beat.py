"""A Celery app whose beat sends a task every half a second. The broker is a folder.

``LOCKS_URL`` is the database of the locks, ``FOLDER`` has the messages. Each beat adds a line to the file
``sent`` for each message that it has sent: its pid, and the name of the task.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import after_task_publish

FOLDER = Path(os.environ["FOLDER"])
app = Celery("beat", broker="filesystem://")
app.conf.broker_transport_options = {
    "data_folder_in": f"{FOLDER}/messages",
    "data_folder_out": f"{FOLDER}/messages",
    "control_folder": f"{FOLDER}/control",
}
app.conf.beat_schedule = {"often": {"task": "often", "schedule": 0.5}}
app.conf.beat_max_loop_interval = 0.2
app.conf.beat_leader = {"url": os.environ["LOCKS_URL"], "lock_ttl": 6}


@after_task_publish.connect
def note(sender: str, **_: Any) -> None:
    with (FOLDER / "sent").open("a") as file:
        file.write(f"{os.getpid()} {sender}\n")
