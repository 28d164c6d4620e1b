"""gevent and eventlet: waiting without stopping the hub, and raising an exception in a greenlet."""

from __future__ import annotations

import importlib
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from .exceptions import LockConfigError


class Hub(Protocol):
    """What runs the greenlets of one thread."""

    def post(self, function: Callable[[], object]) -> None:
        """Call ``function`` in the hub. Callable from any thread."""

    def event(self) -> tuple[Callable[[], object], Callable[[float], bool]]:
        """A function that sets an event, called in the hub, and one that waits for it with a
        timeout.
        """

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        """Call ``function`` in a new greenlet. Called in the hub."""


class _Gevent:
    def __init__(self, hub: Any) -> None:
        self._hub = hub

    def post(self, function: Callable[[], object]) -> None:
        loop = self._hub.loop
        # A destroyed hub has no loop.
        if loop is not None:
            loop.run_callback_threadsafe(function)

    def event(self) -> tuple[Callable[[], object], Callable[[float], bool]]:
        if current() is self._hub:
            raise LockConfigError(
                "a wait for a lock in gevent's hub would stop every greenlet: acquire it in a greenlet "
                "of its own, gevent.spawn(…)"
            )
        event = importlib.import_module("gevent.event").Event()
        return event.set, event.wait

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        sys.modules["gevent"].spawn(function, *args)


class _Eventlet:
    """eventlet's hub takes no calls from other threads: a greenlet of this package reads a socket."""

    def __init__(self, hub: Any) -> None:
        import _socket  # the module that eventlet does not patch

        self._hub = hub
        self._posted: deque[Callable[[], object]] = deque()
        # `socketpair` of `_socket` gives plain sockets without Python's wrappers.
        self._ours, self._theirs = _socket.socketpair()
        self._ours.setblocking(False)
        sys.modules["eventlet"].spawn_n(self._listen)

    def _listen(self) -> None:
        trampoline = sys.modules["eventlet.hubs"].trampoline
        while True:
            trampoline(self._ours.fileno(), read=True)
            self._ours.recv(1024)
            while self._posted:
                self._hub.schedule_call_global(0, self._posted.popleft())

    def post(self, function: Callable[[], object]) -> None:
        self._posted.append(function)
        self._theirs.send(b"!")

    def event(self) -> tuple[Callable[[], object], Callable[[float], bool]]:
        if current() is self._hub.greenlet:
            raise LockConfigError(
                "a wait for a lock in eventlet's hub would stop every greenlet: acquire it in a "
                "greenlet of its own, eventlet.spawn(…)"
            )
        event = importlib.import_module("eventlet.event").Event()

        def done() -> None:
            if not event.ready():
                event.send(True)

        def wait(seconds: float) -> bool:
            event.wait(timeout=seconds)
            return bool(event.ready())

        return done, wait

    def spawn(self, function: Callable[..., object], *args: Any) -> None:
        sys.modules["eventlet"].spawn_n(function, *args)


_MARK = "_database_locks_hub"


def hub() -> Hub | None:
    """The hub of this thread; ``None`` if it has none, so that a wait stops no greenlets."""
    found = _gevent_hub()
    made: type[_Gevent] | type[_Eventlet] = _Gevent
    if found is None:
        found, made = _eventlet_hub(), _Eventlet
    if found is None:
        return None
    known: Hub | None = getattr(found, _MARK, None)
    if known is None:
        known = made(found)
        setattr(found, _MARK, known)
    return known


def _gevent_hub() -> Any:
    local = sys.modules.get("gevent._hub_local")
    if local is None or "gevent" not in sys.modules:
        return None
    found = local.get_hub_if_exists()
    if found is None:
        monkey = sys.modules.get("gevent.monkey")
        if monkey is not None and monkey.is_module_patched("threading"):
            found = local.get_hub()
    return found


def _eventlet_hub() -> Any:
    hubs = sys.modules.get("eventlet.hubs")
    if hubs is None or "eventlet" not in sys.modules:
        return None
    found = getattr(hubs._threadlocal, "hub", None)
    if found is None:
        patcher = sys.modules.get("eventlet.patcher")
        if patcher is not None and patcher.is_monkey_patched("thread"):
            found = hubs.get_hub()
    return found


def current() -> Any:
    return sys.modules["greenlet"].getcurrent()


def unpatched_start() -> Any:
    """The function that starts an OS thread where `threading` is patched to start greenlets, else
    ``None``.
    """
    if "gevent.monkey" in sys.modules:
        return sys.modules["gevent.monkey"].get_original("_thread", "start_new_thread")
    if "eventlet.patcher" in sys.modules:
        return sys.modules["eventlet.patcher"].original("_thread").start_new_thread
    return None


def start_thread(target: Callable[..., object], args: tuple[Any, ...], name: str) -> None:
    """Start a daemon thread of the operating system."""
    start = unpatched_start()
    if start is not None:
        start(target, args)
        return
    import threading

    threading.Thread(target=target, args=args, name=name, daemon=True).start()
