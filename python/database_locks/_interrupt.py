"""Interrupts the body of a block whose lock is lost, in the thread or task where it runs.

============  =====================================================================================
a task        is cancelled; the end of the block turns the cancellation into `LockLost`
a greenlet    gets `LockLost` where it waits, as it would get a timeout of gevent
a thread      gets `LockLost` at its next bytecode
main thread   gets a real-time signal that the application does not use, whose handler raises.
              Nothing else interrupts a system call. If the main thread blocks signals, another
              thread gets the signal, and the main thread is interrupted at its next bytecode
============  =====================================================================================

A block that has ended is not interrupted: see `_core.AsyncException`. A thread in a function of
`_critical_sections` is interrupted when it has left that function.

This code runs on the thread of the extension that reports every loss of the process. It calls no
code of the application and waits for nothing.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import signal
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

from . import _core, _critical_sections, _greenlets, _tasks
from .django import interrupted_connections
from .exceptions import LockLost

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from ._held import Held

logger = logging.getLogger("database_locks.locks")

_RESEND = 0.2
"""Seconds between two signals: one that arrives just before the main thread starts to sleep does
not wake it."""

_RETRY = 0.002
"""Seconds between two tries to interrupt a thread in a critical section."""

_SIGNALS = 2
"""After this many signals without effect, another thread gets them too: the main thread may block
them."""

_signum: int | None = None
_main_thread_holds: dict[int, weakref.ref[Held]] = {}
"""By `id`. Not a `WeakSet`: an exception that arrives in its callbacks, which are Python code, is
lost."""


def signum() -> int:
    """The signal that ``lost_lock_cb`` gets as its first argument; 0 if none is taken."""
    return _signum or 0


def _arriving(held: Held) -> type[LockLost]:
    """A class for one loss: the interpreter takes a class and makes the instance itself."""

    class Arriving(LockLost):
        arrived = False

        def __init__(self) -> None:
            type(self).arrived = True
            super().__init__()
            vars(self).update(vars(held._error()))
            interrupted_connections.note(held, sys._getframe(1))

        def __reduce__(self) -> tuple[Any, ...]:
            return (LockLost, self.args, self.__dict__)

    Arriving.__name__ = LockLost.__name__
    Arriving.__qualname__ = LockLost.__qualname__
    Arriving.__module__ = LockLost.__module__
    return Arriving


def watch(held: Held) -> None:
    """Prepare to interrupt the body of a block. Called in its thread, task or greenlet."""
    if held._task is None and threading.current_thread() is threading.main_thread():
        _take_signal()
        for known in [known for known, ref in _main_thread_holds.items() if ref() is None]:
            _main_thread_holds.pop(known, None)
        _main_thread_holds[id(held)] = weakref.ref(held)


def open_scope(held: Held) -> None:
    """Open the cancel scope of trio; the end of the block closes it.

    The last step on the way into a block: nothing after it may fail and leave the scope open.
    """
    if _tasks.is_trio(held._task):
        scope = sys.modules["trio"].CancelScope()
        scope.__enter__()
        held._scope = scope


def forget(held: Held) -> None:
    """The body has ended."""
    _main_thread_holds.pop(id(held), None)


def interrupter(held: Held) -> Callable[[Held], None]:
    """The function that interrupts this body, called on the extension's thread."""
    if held._task is None:
        return _interrupt_thread
    if isinstance(held._task, asyncio.Future):
        loop = held._task.get_loop()

        def cancel_task(held: Held) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_cancel, held)

        return cancel_task
    if _tasks.is_trio(held._task):
        trio = sys.modules["trio"]
        token = trio.lowlevel.current_trio_token()

        def cancel_in_trio(held: Held) -> None:
            try:
                token.run_sync_soon(_cancel, held)
            except trio.RunFinishedError:
                return

        return cancel_in_trio
    hub = _greenlets.hub()

    def throw_in_hub(held: Held) -> None:
        if hub is not None:
            hub.post(functools.partial(_throw, hub, held))

    return throw_in_hub


def callback_in_thread(held: Held) -> None:
    """Call ``lost_lock_cb`` in a thread of its own, unless the body has got the loss already."""
    if held._callback is not None and held._exception.mark_delivered():
        _greenlets.start_thread(held._callback, (signum(), None), "lost_lock_cb")


def _interrupt_thread(held: Held) -> None:
    if id(held) in _main_thread_holds and _signum is not None:
        _greenlets.start_thread(_signal_main, (held,), "database-locks-loss")
    elif held._callback is None:
        arriving = _arriving(held)
        if not held._exception.raise_in_thread(
            arriving, _critical_sections.CODES, _critical_sections.STARTS
        ):
            _greenlets.start_thread(_raise_soon, (held, arriving), "database-locks-loss")
    else:
        # A thread cannot be made to call a function, and the caller of this must not wait for it.
        callback_in_thread(held)


def _raise_soon(held: Held, arriving: type[LockLost]) -> None:
    while not held._exception.raise_in_thread(
        arriving, _critical_sections.CODES, _critical_sections.STARTS
    ):
        with _critical_sections.short_switch_interval():
            time.sleep(_RETRY)


def _throw(hub: _greenlets.Hub, held: Held) -> None:
    """Runs in the hub, so the greenlet itself is not running."""
    if not held._exception.mark_delivered():
        return
    if held._callback is not None:
        hub.spawn(held._callback, signum(), None)
    elif not held._task.dead:
        interrupted_connections.note(held, held._task.gr_frame)
        held._task.throw(held._error())


def _cancel(held: Held) -> None:
    """Runs in the thread of the event loop, between two steps of the task."""
    if not held._exception.mark_delivered():
        return
    if held._callback is not None:
        held._callback(signum(), None)
        return
    held._cancelled = True
    if held._scope is not None:
        held._scope.cancel()
    elif isinstance(held._task, asyncio.Task):
        held._task.cancel()


def is_own_cancellation(held: Held, raised: BaseException | None) -> bool:
    """Whether ``raised`` is the cancellation that reported the loss; the task is un-cancelled then."""
    if not held._cancelled:
        return False
    held._cancelled = False
    task = held._task
    if not isinstance(task, asyncio.Task):
        return False
    # Before Python 3.11 tasks do not count cancellations. The rest are of the application.
    left = task.uncancel() if hasattr(task, "uncancel") else 0
    return left == 0 and isinstance(raised, asyncio.CancelledError)


def _signal_main(held: Held) -> None:
    ident = threading.main_thread().ident
    for sent in itertools.count():
        if not held._exception.armed or ident is None or _signum is None:
            return
        signal.pthread_kill(ident, _signum)
        if sent >= _SIGNALS:
            # The interpreter runs handlers in the main thread, in any case.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {_signum})
            signal.pthread_kill(threading.get_ident(), _signum)
        time.sleep(_RESEND)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    """The signal's handler, called in the main thread."""
    if frame is not None and _core.is_critical(
        frame, _critical_sections.CODES, _critical_sections.STARTS
    ):
        # `_signal_main` sends another one.
        return
    for ref in list(_main_thread_holds.values()):
        held = ref()
        if held is not None and held._loss is not None and held._exception.mark_delivered():
            if held._callback is not None:
                held._callback(signum, frame)
                continue
            interrupted_connections.note(held, frame)
            raise held._error()


def _take_signal() -> None:
    """Choose an unused real-time signal. The handler stays: a late signal would end the process."""
    global _signum
    if _signum is not None and signal.getsignal(_signum) is _on_signal:
        return
    _signum = None
    if not hasattr(signal, "SIGRTMAX"):
        return
    for signum in range(signal.SIGRTMAX - 2, signal.SIGRTMIN, -1):
        if signal.getsignal(signum) is signal.SIG_DFL:
            try:
                signal.signal(signum, _on_signal)
            except ValueError:
                # A subinterpreter: its main thread is interrupted like any other thread.
                return
            _signum = signum
            return
    logger.warning(
        "every real-time signal is in use: the loss of a lock cannot interrupt a system call of the "
        "main thread"
    )
