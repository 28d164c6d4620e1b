"""Telling a body that its lock is lost, in whichever thread or task it runs.

A task is cancelled, and its cancellation turned into `LockLost` where the block ends. A greenlet is
told where it waits, as by a timeout of gevent's. In a thread
`LockLost` is raised at its next bytecode. The main thread may be asleep in a system call, which only
a signal interrupts: a real-time one that nobody uses, so that no handler of the application is
touched, and its handler raises. If the main thread has signals blocked, another thread gets the
signal, and the main thread is told at its next bytecode. A block that has ended is not told: see
`_core.Alarm`; one that is in a function of `_critical` is told when it has left that.

What is here runs on the extension's thread that tells every loss of the process, so it starts no
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
from typing import TYPE_CHECKING, Any, TypedDict

from . import _core, _critical, _greenlets, _interrupted, _owner, _signals, _transactions
from .exceptions import LockLost

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from .locks import Held

logger = logging.getLogger("database_locks.locks")

_AGAIN = 0.2
"""Seconds between two signals: one that arrives just before the main thread goes to sleep does not
wake it."""

_SOON = 0.002
"""Seconds between two looks at a thread that cannot be told just now."""

_SIGNALS = 2
"""After so many without effect the main thread may have signals blocked: another one gets them too."""

_signum: int | None = None
_main_thread_holds: dict[int, weakref.ref[Held]] = {}
"""By `id`. No `WeakSet`: its callbacks are Python code, in which an exception that arrives is lost."""


class Loss(TypedDict):
    """What there is to say of a loss, as `LockLost` takes it."""

    reason: str | None
    detail: str | None
    last_answer: str | None
    held_for: float | None
    holder: str | None
    holder_token: int | None


def of(lost: LockLost) -> Loss:
    return {
        "reason": lost.reason,
        "detail": lost.detail,
        "last_answer": lost.last_answer,
        "held_for": lost.held_for,
        "holder": lost.holder,
        "holder_token": lost.holder_token,
    }


def error_of(held: Held) -> LockLost:
    loss: Loss | None = held._loss or held._guard.loss()
    if loss is None:
        # Released meanwhile, as lost as it was.
        return LockLost(name=held.name, token=held.token, reason="expired")
    return LockLost(name=held.name, token=held.token, **loss)


def _arriving(held: Held) -> type[LockLost]:
    """A class of its own for one loss, since the interpreter raises only what it can make itself."""

    class Arriving(LockLost):
        arrived = False

        def __init__(self) -> None:
            type(self).arrived = True
            super().__init__()
            vars(self).update(vars(error_of(held)))
            _interrupted.note(held, sys._getframe(1))

        def __reduce__(self) -> tuple[Any, ...]:
            return (LockLost, self.args, self.__dict__)

    Arriving.__name__ = LockLost.__name__
    Arriving.__qualname__ = LockLost.__qualname__
    Arriving.__module__ = LockLost.__module__
    return Arriving


def watch(held: Held) -> None:
    """From now on, tell this body. Called in its thread, task or greenlet."""
    if held._task is None and threading.current_thread() is threading.main_thread():
        _take_signal()
        for known in [known for known, ref in _main_thread_holds.items() if ref() is None]:
            _main_thread_holds.pop(known, None)
        _main_thread_holds[id(held)] = weakref.ref(held)
    tell = _teller(held)
    # Weakly: what the extension holds on to would keep the lock held for ever otherwise.
    ref = weakref.ref(held)

    def on_lost(loss: Loss) -> None:
        held = ref()
        if held is not None:
            held._loss = loss
            _transactions.mark_lost(held)
            tell(held)
            _signals.lost(held, loss)

    held._guard.on_lost(on_lost)
    if _owner.is_trio(held._task):
        # Closed where the block ends. The last of all: nothing on the way in may leave it open.
        scope = sys.modules["trio"].CancelScope()
        scope.__enter__()
        held._scope = scope


def watch_detached(held: Held) -> None:
    """For a lock that no block holds: nothing is raised, and ``lost_lock_cb`` has a thread of its own."""
    ref = weakref.ref(held)

    def on_lost(loss: Loss) -> None:
        held = ref()
        if held is None:
            return
        held._loss = loss
        _transactions.mark_lost(held)
        _signals.lost(held, loss)
        if held._callback is not None and held._alarm.told():
            _greenlets.start_thread(held._callback, (_signum or 0, None), "lost_lock_cb")

    held._guard.on_lost(on_lost)


def forget(held: Held) -> None:
    """Its body has ended."""
    _main_thread_holds.pop(id(held), None)


def _teller(held: Held) -> Callable[[Held], None]:
    """How to tell this body, from the extension's thread."""
    if held._task is None:
        return _tell_thread
    if isinstance(held._task, asyncio.Future):
        loop = held._task.get_loop()

        def tell_task(held: Held) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_cancel, held)

        return tell_task
    if _owner.is_trio(held._task):
        trio = sys.modules["trio"]
        token = trio.lowlevel.current_trio_token()

        def tell_trio(held: Held) -> None:
            try:
                token.run_sync_soon(_cancel, held)
            except trio.RunFinishedError:
                return

        return tell_trio
    hub = _greenlets.hub()

    def tell_greenlet(held: Held) -> None:
        if hub is not None:
            hub.post(functools.partial(_throw, hub, held))

    return tell_greenlet


def _tell_thread(held: Held) -> None:
    if id(held) in _main_thread_holds and _signum is not None:
        _greenlets.start_thread(_signal_main, (held,), "database-locks-loss")
    elif held._callback is None:
        arriving = _arriving(held)
        if not held._alarm.raise_in_thread(arriving, _critical.CODES, _critical.STARTS):
            _greenlets.start_thread(_raise_soon, (held, arriving), "database-locks-loss")
    elif held._alarm.told():
        # No other thread can be made to call something, and the caller must not be held up.
        _greenlets.start_thread(held._callback, (_signum or 0, None), "lost_lock_cb")


def _raise_soon(held: Held, arriving: type[LockLost]) -> None:
    while not held._alarm.raise_in_thread(arriving, _critical.CODES, _critical.STARTS):
        with _critical.short_turns():
            time.sleep(_SOON)


def _throw(hub: _greenlets.Hub, held: Held) -> None:
    """In the hub of its greenlet, which cannot be running."""
    if not held._alarm.told():
        return
    if held._callback is not None:
        hub.spawn(held._callback, _signum or 0, None)
    elif not held._task.dead:
        _interrupted.note(held, held._task.gr_frame)
        held._task.throw(error_of(held))


def _cancel(held: Held) -> None:
    """In the loop's thread, where the task cannot be running."""
    if not held._alarm.told():
        return
    if held._callback is not None:
        held._callback(_signum or 0, None)
        return
    held._cancelled = True
    if held._scope is not None:
        held._scope.cancel()
    elif isinstance(held._task, asyncio.Task):
        held._task.cancel()


def is_own_cancellation(held: Held, raised: BaseException | None) -> bool:
    """Whether that is how a task was told. It counts as cancelled no more."""
    if not held._cancelled:
        return False
    held._cancelled = False
    task = held._task
    if not isinstance(task, asyncio.Task):
        return False
    # Before Python 3.11 a task does not count. What is left is a cancellation by the application.
    left = task.uncancel() if hasattr(task, "uncancel") else 0
    return left == 0 and isinstance(raised, asyncio.CancelledError)


def _signal_main(held: Held) -> None:
    ident = threading.main_thread().ident
    for sent in itertools.count():
        if not held._alarm.armed or ident is None or _signum is None:
            return
        signal.pthread_kill(ident, _signum)
        if sent >= _SIGNALS:
            # The interpreter runs the handler in the main thread, whichever thread has the signal.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {_signum})
            signal.pthread_kill(threading.get_ident(), _signum)
        time.sleep(_AGAIN)


def _on_signal(signum: int, frame: FrameType | None) -> None:
    """In the main thread, wherever its body is."""
    if frame is not None and _core.is_critical(frame, _critical.CODES, _critical.STARTS):
        # Another signal comes.
        return
    for ref in list(_main_thread_holds.values()):
        held = ref()
        if held is not None and held._loss is not None and held._alarm.told():
            if held._callback is not None:
                held._callback(signum, frame)
                continue
            _interrupted.note(held, frame)
            raise error_of(held)


def _take_signal() -> None:
    """Choose a real-time signal that nobody uses. It stays ours: a late one would end the process."""
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
                # Not the main interpreter: it is told like any other thread.
                return
            _signum = signum
            return
    logger.warning(
        "every real-time signal is in use: the loss of a lock reaches the main thread only when it "
        "does not sleep in a system call"
    )
