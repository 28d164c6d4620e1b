"""The locks of one table: everything but `lock` and `locked`, which `_connect` adds."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from typing import Any

from . import _arguments, _core, _credentials, _exit
from ._wait import wait, wait_async
from .exceptions import LockConfigError, LockUnavailable


class Client:
    """A connection of this process to the locks of one table.

    The methods and their errors are described in `database_locks.Locks`.
    """

    def __init__(
        self,
        url: str,
        table: str | None = None,
        *,
        password: Callable[[], str] | None = None,
        _url_with: Callable[[], str] | None = None,
        _environment: bool = True,
    ) -> None:
        if password is not None and not callable(password):
            raise LockConfigError(
                f"`password` is of type {type(password).__name__}, must be a function without "
                "arguments that returns the password"
            )
        self._core = _core.Locks(
            url,
            table,
            password=_credentials.asking(password),
            url_with=_credentials.asking(_url_with),
            environment=_environment,
        )
        _exit.clients.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.engine}>"

    @property
    def engine(self) -> str:
        """``postgres``, ``mysql``, ``sqlite`` or ``memory``."""
        return self._core.engine

    def is_locked(self, name: str) -> bool:
        """Whether any holder has this lock now, a shared one too, by the database's clock.

        ``False`` for a lock that rests (``at_least``): no holder has it, although none can acquire
        it. `show` tells the two apart.
        """
        found = self.show(_arguments.text("lock_name", name))
        if found is not None and found["state"] == "held":
            return True
        return self._sharing(name) is not None

    async def ais_locked(self, name: str) -> bool:
        """`is_locked` for a task."""
        found = await self.ashow(_arguments.text("lock_name", name))
        if found is not None and found["state"] == "held":
            return True
        return await self._asharing(name) is not None

    def list(self, *, free: bool = True) -> builtins.list[dict[str, Any]]:
        """Every lock in the table, as ``dblock list --all --json`` prints them.

        ``free=False``: only locks that are held, resting or expired; the database filters out the
        free ones.
        """
        locks: builtins.list[dict[str, Any]] = json.loads(wait(self._core.list(free=free)))
        return locks

    async def alist(self, *, free: bool = True) -> builtins.list[dict[str, Any]]:
        """`list` for a task."""
        text = await wait_async(self._core.list(free=free))
        locks: builtins.list[dict[str, Any]] = json.loads(text)
        return locks

    def _page(
        self, text: str, state: str | None, page: int, rows: int, order: str | None = None
    ) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(wait(self._core.page(text, state, page, rows, order)))
        return found

    def show(self, name: str) -> dict[str, Any] | None:
        """One lock, or ``None`` if the table has none of that name. Of holders that share it, it has
        only ``waits_for``, their number, if an exclusive holder waits for them: see `show_shared`.
        """
        return one(wait(self._core.show(_arguments.text("name", name))))

    async def ashow(self, name: str) -> dict[str, Any] | None:
        """`show` for a task."""
        return one(await wait_async(self._core.show(_arguments.text("name", name))))

    def show_shared(self, name: str) -> builtins.list[dict[str, Any]]:
        """The shared holders of a lock, each as `show` returns a lock, with ``shared``. Dead ones are
        among them, whose ``state`` is ``expired``.
        """
        return every(wait(self._core.show_shared(_arguments.text("name", name))))

    async def ashow_shared(self, name: str) -> builtins.list[dict[str, Any]]:
        """`show_shared` for a task."""
        return every(await wait_async(self._core.show_shared(_arguments.text("name", name))))

    def _known_shared(self, name: str) -> builtins.list[dict[str, Any]]:
        """`show_shared`; empty for a database of an earlier version, which has no table for them."""
        try:
            return self.show_shared(name)
        except LockUnavailable:
            return []

    def _sharing(self, name: str) -> dict[str, Any] | None:
        """The shared holder that has held the lock the longest, and the number of all as
        ``shared_by``; ``None`` if there is none.
        """
        return longest(self._known_shared(name))

    async def _asharing(self, name: str) -> dict[str, Any] | None:
        try:
            return longest(await self.ashow_shared(name))
        except LockUnavailable:
            return None

    def show_semaphore(self, name: str) -> dict[str, Any]:
        """A semaphore: ``held``, the number of permits that are held, ``of`` how many, ``limit``,
        that of an operator (``None``: each caller's counts), and ``permits``, those that were
        granted once, as `show` returns a lock, with ``slot``.
        """
        found: dict[str, Any] = json.loads(
            wait(self._core.show_semaphore(_arguments.text("name", name)))
        )
        return found

    async def ashow_semaphore(self, name: str) -> dict[str, Any]:
        """`show_semaphore` for a task."""
        text = await wait_async(self._core.show_semaphore(_arguments.text("name", name)))
        found: dict[str, Any] = json.loads(text)
        return found

    def set_limit(self, name: str, limit: int | None) -> None:
        """Set the limit of a semaphore in the database, which takes precedence over those of all
        callers at their next try; 0 pauses the semaphore, ``None`` removes the limit.

        Holders above a lowered limit keep their permits until they release them.
        """
        name = _arguments.text("name", name)
        wait(self._core.set_limit(name, _arguments.limit_of(limit)))

    def guard_table(self, table: str, lock: str, *, allow_cascades: bool = False) -> None:
        """Put a table under the guard of a lock: the database refuses every write to it in a
        transaction that does not hold the lock. Done again, it changes nothing.

        ``table`` is ``TABLE`` or ``SCHEMA.TABLE``, as SQL writes it. A migration uses
        `database_locks.operations.GuardTable`. ``allow_cascades``: also if cascades of foreign
        keys pass by the guard (MySQL, MariaDB).

        Raises `LockUnavailable` with the reason if the table cannot be guarded, as on SQLite.
        """
        table, lock = _arguments.text("table", table), _arguments.text("lock", lock)
        wait(self._core.guard_table(table, lock, allow_cascades))

    def unguard_table(self, table: str) -> bool:
        """Remove the guard of a table. Returns whether it had one."""
        return wait(self._core.unguard_table(_arguments.text("table", table)))

    def guarded_tables(self) -> builtins.list[dict[str, Any]]:
        """The guarded tables, as ``dblock guard --json`` prints them: ``table``, ``lock``,
        ``intact``, ``gaps`` and ``bypasses``.
        """
        return [
            {"table": table, "lock": lock, "intact": not gaps, "gaps": gaps, "bypasses": bypasses}
            for table, lock, gaps, bypasses in wait(self._core.guarded_tables())
        ]

    def force_release(
        self, name: str, slot: int | None = None
    ) -> tuple[str | None, float | None] | None:
        """Release a lock without its holder, or end its rest; with ``slot``, the permit of a
        semaphore that has this number.

        Returns the previous holder and for how many seconds it held the lock; ``None`` if it was
        free. Raises `LockConfigError` if no ``slot`` is given, and there is only a semaphore of this
        name with permits that are held, or there are only shared holders: see
        `force_release_shared`.
        """
        freed = self._force_release(name, slot)
        return None if freed is None else freed[:2]

    def _force_release(
        self, name: str, slot: int | None = None
    ) -> tuple[str | None, float | None, bool] | None:
        """`force_release`, and whether the lock rested."""
        name, slot = _arguments.text("name", name), _arguments.slot_of(slot)
        freed = wait(self._core.force_release(name, slot))
        if freed is None and slot is None:
            self._refuse_shared(name)
            self._refuse_semaphore(name)
        return freed

    def force_release_shared(self, name: str) -> builtins.list[tuple[str | None, float | None]]:
        """Release a lock without its shared holders, all of them.

        Returns each of them, and for how many seconds it had held the lock; an empty list if there
        were none.
        """
        return wait(self._core.force_release_shared(_arguments.text("name", name)))

    def _refuse_shared(self, name: str) -> None:
        """Raise an error if only shared holders have the lock."""
        sharing = self._sharing(name)
        if sharing is not None:
            many = sharing["shared_by"]
            raise LockConfigError(
                f"lock `{name}` is shared by {many} holder{'' if many == 1 else 's'}: release all of them "
                "by `force_release_shared`, or `manage.py locks release --force --shared`"
            )

    def _refuse_semaphore(self, name: str) -> None:
        """Raise an error if permits of this name are held: which one is meant?"""
        try:
            held = self.show_semaphore(name)["held"]
        except LockUnavailable:
            # A database of an earlier version has no table of permits.
            return
        if held:
            raise LockConfigError(
                f"`{name}` is a semaphore, of which {held} permit{' is' if held == 1 else 's are'} "
                "held: name one by `slot`, as `show_semaphore` and `manage.py locks show` print it"
            )

    def prune(self, idle: float, unknown: bool = False) -> int:
        """Delete the rows of locks that have been free for ``idle`` seconds. Returns their number.

        ``unknown``: also free rows that do not say since when, as legacy (django-database-locks
        0.5) writes them.
        """
        return wait(self._core.prune(idle, unknown))

    def doctor(self) -> Any:
        """Problems of the database and their fixes, as ``dblock doctor --json`` prints them."""
        return json.loads(wait(self._core.doctor()))

    def migrate(self) -> None:
        """Create the table, or add missing columns. A second run changes nothing."""
        wait(self._core.migrate())

    def drain(self) -> None:
        """Wait until all releases in the background are done."""
        wait(self._core.drain())

    def expire(self, name: str) -> bool:
        """For tests, on ``memory:``: end a lease now, those of all shared holders too. Returns whether
        the lock was held.
        """
        return wait(self._core.expire(name))

    def lose(self, name: str) -> bool:
        """For tests: release a lock by force, and report the loss to its holders in this process. Those
        that share it are among them.
        """
        return wait(self._core.lose(name))


def one(text: str | None) -> dict[str, Any] | None:
    lock: dict[str, Any] | None = None if text is None else json.loads(text)
    return lock


def every(text: str) -> list[dict[str, Any]]:
    locks: list[dict[str, Any]] = json.loads(text)
    return locks


def longest(shared: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The living holder that has shared a lock the longest, with the number of all of them."""
    held = [row for row in shared if row["state"] == "held"]
    if not held:
        return None
    return {**max(held, key=lambda row: row["held_for"] or 0.0), "shared_by": len(held)}
