"""Calls functions that say a password or a URL, for the extension."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._greenlets import unpatched_start
from .exceptions import LockConfigError

if TYPE_CHECKING:
    from ._core import Answer


def start(ask: Callable[[], Any], answer: Answer) -> None:
    """Call ``ask`` on a thread of its own, which may block."""
    patched = unpatched_start()
    try:
        if patched is not None:
            patched(_call, (ask, answer))
            return
        threading.Thread(
            target=_call, args=(ask, answer), name="database-locks-login", daemon=True
        ).start()
    except RuntimeError as error:
        # The interpreter is coming to its end.
        answer.fail(str(error), error, final=False)


def _call(ask: Callable[[], Any], answer: Answer) -> None:
    try:
        said = ask()
        if not isinstance(said, str):
            raise TypeError(
                f"the function for the password returned {type(said).__name__}, must be a str"
            )
    except BaseException as error:  # noqa: BLE001 - whatever it is, the waiting thread is told
        # Its frames may hold what is secret.
        error.__traceback__ = None
        if isinstance(error, LockConfigError):
            answer.fail(str(error), error, final=True)
        else:
            answer.fail(f"{type(error).__name__}: {error}", error, final=False)
    else:
        answer.give(said)
