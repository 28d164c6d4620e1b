"""The end of the process: every lock is released, and the extension calls Python no more."""

from __future__ import annotations

import atexit
import weakref
from typing import TYPE_CHECKING

from . import _core, _logging

if TYPE_CHECKING:
    from ._client import Client

clients: weakref.WeakSet[Client] = weakref.WeakSet()
"""All clients of this process; each adds itself."""

_TIMEOUT = 2.0
"""Seconds at most that the end of the process waits for releases, and for log handlers."""


@atexit.register
def _close() -> None:
    # Not left to the garbage collector: a release at the end of the interpreter would race with it.
    _core.give_all_back()
    for client in list(clients):
        pending = client._core.drain()
        if not pending.wait(_TIMEOUT):
            pending.cancel()
    # The releases above may log.
    _logging.close(_TIMEOUT)
    _core.close()
