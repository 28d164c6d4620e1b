"""Calls the application's function for a password or URL on a thread of its own."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._greenlets import unpatched_start
from .exceptions import LockConfigError

if TYPE_CHECKING:
    from ._core import Answer

Ask = Callable[["Answer"], None]


def asking(function: Callable[[], Any] | None) -> Ask | None:
    """What the extension calls at each connect: starts ``function``, which may block."""
    return None if function is None else functools.partial(_start, function)


def _start(function: Callable[[], Any], answer: Answer) -> None:
    patched = unpatched_start()
    try:
        if patched is not None:
            patched(_call, (function, answer))
            return
        threading.Thread(
            target=_call, args=(function, answer), name="database-locks-login", daemon=True
        ).start()
    except RuntimeError as error:
        # The interpreter is shutting down.
        answer.fail(str(error), error, final=False)


def _call(function: Callable[[], Any], answer: Answer) -> None:
    try:
        password = function()
        if not isinstance(password, str):
            raise TypeError(
                f"the function for the password returned {type(password).__name__}, must be a str"
            )
    except BaseException as error:  # noqa: BLE001 - the thread that waits gets it, whatever it is
        # The variables of its frames may hold a secret.
        error.__traceback__ = None
        if isinstance(error, LockConfigError):
            answer.fail(str(error), error, final=True)
        else:
            answer.fail(f"{type(error).__name__}: {error}", error, final=False)
    else:
        answer.give(password)
