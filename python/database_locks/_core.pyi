"""The extension, written in Rust. Private to this package."""

import builtins
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any, Generic, TypeVar, final

from typing_extensions import Self, disjoint_base

from ._typing import Loss

_T = TypeVar("_T")

__all__ = [
    "Answer",
    "AsyncException",
    "Entry",
    "Fence",
    "Guard",
    "Locks",
    "Observer",
    "Pending",
    "Scope",
    "Steps",
    "UninterruptedMethod",
    "__version__",
    "check_url",
    "close",
    "close_log",
    "columns",
    "generation",
    "give_all_back",
    "guard_script",
    "guard_triggers",
    "human",
    "is_critical",
    "is_fence_conflict",
    "next_record",
    "parse_duration",
    "permit_schema",
    "schema",
    "set_log_level",
    "set_program",
    "ticket_parts",
    "unguard_script",
    "unguard_triggers",
]

__version__: str

def generation() -> int:
    """The number of forks since the first call; a number for each process."""

def check_url(url: str, table: str | None = None) -> None:
    """Check a URL and the name of a table, without I/O. Raises `LockConfigError`."""

def ticket_parts(ticket: str) -> tuple[str, int | None, bool]:
    """The name of the lock of a ticket, the number of the permit, if it is one, and whether its holder
    shares the lock. `LockConfigError` for an invalid ticket, which is not repeated.
    """

def schema(engine: str) -> str | None:
    """The statement that creates the table, with ``{table}`` for its name and, on MySQL,
    ``{collation}``.
    """

def permit_schema(engine: str) -> str | None:
    """As `schema`, for the table of permits, with ``{permits}`` for its name."""

def guard_script(table: str, lock: str) -> str:
    """The statement that puts a table of PostgreSQL under guard; ``table`` is as SQL writes it."""

def unguard_script(table: str) -> str:
    """The statement that removes the guard of a table of PostgreSQL."""

def guard_triggers(table: str, lock: str, mariadb: bool, cluster: bool) -> list[str]:
    """The statements that put a table under guard on a server of MySQL or MariaDB, or on a cluster;
    ``table`` is its plain name.
    """

def unguard_triggers(table: str) -> list[str]:
    """The statements that drop those triggers."""

def columns(engine: str) -> list[tuple[str, str]]:
    """Name and definition of each column, in the order of `schema`."""

def parse_duration(text: str) -> float:
    """Seconds of ``500ms``, ``30s``, ``5m``, ``2h``, ``1d``, or bare seconds; else
    `LockConfigError`.
    """

def human(seconds: float) -> str:
    """A length of time: ``30s``, ``2m 5s``, ``10m``."""

def set_program(path: str) -> None:
    """Set the path of this program. The first call counts."""

def close() -> None:
    """Call Python no more: the interpreter is about to end."""

def give_all_back() -> None:
    """Begin to release all locks of this process. No later acquire succeeds."""

def set_log_level(level: int, start: Callable[[], object]) -> None:
    """Pass on log records from this level on. ``start`` starts a thread that calls `next_record`."""

def next_record() -> tuple[float, int, str, dict[str, int | str]]:
    """Wait for a record: time, level, message and fields. Does not return after `close_log`."""

def close_log(patience: float) -> bool:
    """Wait until the handlers have all records, ``patience`` seconds at most, and pass on no more.

    Returns `False` if a handler blocks.
    """

@final
class Pending(Generic[_T]):
    """An operation in the background. A dropped one is cancelled."""

    def wait(self, seconds: float) -> bool:
        """Wait without the GIL, for ``seconds`` at most. Returns whether it is done. Ctrl-C
        interrupts it.
        """

    def result(self) -> _T:
        """The result, or the error of the operation. Once, and only when it is done."""

    def then(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when it is done: at once, or on a thread of the extension."""

    def cancel(self) -> None:
        """Cancel the operation. A lock that it has acquired is released."""

@final
class Answer:
    """Receives the result of a function that returns a password or a URL."""

    def give(self, text: str) -> None:
        """The function has returned ``text``."""

    def fail(self, message: str, error: BaseException, *, final: bool) -> None:
        """The function has failed. ``final``: another call would fail in the same way."""

@final
class Locks:
    """The locks of one table."""

    engine: str
    """``postgres``, ``mysql``, ``sqlite`` or ``memory``."""

    def __new__(
        cls,
        url: str,
        table: str | None = None,
        *,
        password: Callable[[Answer], None] | None = None,
        url_with: Callable[[Answer], None] | None = None,
        environment: bool = True,
    ) -> Locks:
        """Without I/O: the first call connects. `LockConfigError` for a bad URL, which is not
        repeated.

        ``password`` is called at each connect if the URL has no password, ``url_with`` for another
        URL of the same database. Both return at once and answer later. ``environment=False``:
        nothing that the URL leaves out is read from the environment or the home folder.
        """

    def acquire(
        self,
        name: str,
        *,
        ttl: float | None,
        wait: float | None,
        auto_renew: bool = True,
        renew_every: float | None = None,
        holder: str | None = None,
        poll: float | None = None,
        at_least: float = 0.0,
        once_per: float | None = None,
        meta: str | None = None,
        permits: int | None = None,
        shared: bool = False,
    ) -> Pending[Guard | None]:
        """Begin to acquire; with ``permits``, a permit of a semaphore; ``shared``: together with other
        shared holders. For these two ``holder`` takes nothing over. In seconds; ``ttl=None``: without end; ``wait=None``: no limit, 0: one
        try.

        The result is a `Guard`, or ``None`` if one try failed because another holder has the lock.
        `LockTimeout` if a longer wait timed out, `LockAlreadyRan` for a grant that is too recent.
        """

    def acquire_all(
        self,
        names: list[str],
        *,
        ttl: float | None,
        wait: float | None,
        auto_renew: bool = True,
        renew_every: float | None = None,
        holder: str | None = None,
        poll: float | None = None,
        meta: str | None = None,
    ) -> Pending[Guard | None]:
        """Begin to acquire all of these locks, or none. As `acquire`; ``holder`` takes nothing
        over.
        """

    def resume(
        self,
        ticket: str,
        *,
        ttl: float | None,
        auto_renew: bool = True,
        renew_every: float | None = None,
    ) -> Pending[Guard | None]:
        """Begin to resume a lock that was handed over. The result is a `Guard`."""

    def migrate(self) -> Pending[None]: ...
    def list(self, *, free: bool = True) -> Pending[str]:
        """The result is JSON, the array of `dblock list --all --json`. ``free=False``: that of `dblock
        list --json`.
        """

    def page(
        self, text: str, state: str | None, page: int, rows: int, order: str | None = None
    ) -> Pending[str]:
        """``order``: ``age`` (longest held first), ``-age``, or ``None``: by state and name.

        The result is JSON: ``rows`` of one page, those of permits with ``held`` and ``of`` too, ``total``, and the numbers of ``held``,
        ``resting``, ``expired`` and ``free`` locks (``null`` if the filter excludes them).
        """

    def show(self, name: str) -> Pending[str | None]:
        """The result is JSON of one lock, or ``None`` if there is no such lock."""

    def show_shared(self, name: str) -> Pending[str]:
        """The result is JSON, an array of the shared holders."""

    def observe(self, name: str) -> Observer:
        """Without I/O."""

    def show_semaphore(self, name: str) -> Pending[str]:
        """The result is JSON: ``name``, ``limit``, ``of``, ``held`` and ``permits``."""

    def set_limit(self, name: str, limit: int | None) -> Pending[None]: ...
    def guard_table(self, table: str, lock: str, allow_cascades: bool) -> Pending[None]: ...
    def unguard_table(self, table: str) -> Pending[bool]: ...
    def guarded_tables(
        self,
    ) -> Pending[builtins.list[tuple[str, str, builtins.list[str], builtins.list[str]]]]: ...
    def force_release(
        self, name: str, slot: int | None = None
    ) -> Pending[tuple[str | None, float | None, bool] | None]:
        """The result is ``(holder, held_for, rested)``, or ``None`` if the lock was free."""

    def force_release_shared(
        self, name: str
    ) -> Pending[builtins.list[tuple[str | None, float | None]]]:
        """The result is ``(holder, held_for)`` of each shared holder."""

    def prune(self, idle: float, include_legacy: bool) -> Pending[int]:
        """The result is the number of deleted rows."""

    def doctor(self) -> Pending[str]:
        """The result is JSON, as `dblock doctor --json` prints it."""

    def drain(self) -> Pending[None]: ...
    def expire(self, name: str) -> Pending[bool]:
        """For tests, on `memory`: end the leases now. The result is whether there was one."""

    def lose(self, name: str) -> Pending[bool]:
        """For tests: release by force, and report the loss to the holders in this process at once."""

@final
class Observer:
    """Observes who leads."""

    def next(self) -> Pending[str | None]:
        """At first the present leader, then each change. The result is JSON as of `Locks.show`, or
        ``None`` while there is no leader.
        """

@final
class AsyncException:
    """Raises an exception in the thread that runs a body, as long as the body runs."""

    armed: bool
    was_delivered: bool
    def __new__(cls) -> AsyncException:
        """For the calling thread."""

    def raise_in_thread(
        self,
        exception: type[BaseException],
        codes: frozenset[CodeType],
        starts: frozenset[CodeType],
    ) -> bool:
        """Raise it in the thread, once. The class sets its attribute ``arrived`` when it is raised.

        `False`: the thread is in a critical section, so try again. See `is_critical`.
        """

    def mark_delivered(self) -> bool:
        """The loss is reported by other means. Returns whether it was not reported before."""

    def pause(self) -> bool: ...
    def mark_delivered_in_pause(self) -> bool: ...
    def resume(self) -> None: ...
    def disarm(self) -> None: ...

def is_critical(frame: FrameType, codes: frozenset[CodeType], starts: frozenset[CodeType]) -> bool:
    """Whether one of the innermost frames runs one of ``codes``, or one of ``starts``
    (`threading.Thread.start`) whose new thread has no ident yet.
    """

@final
class UninterruptedMethod:
    """Replaces a method.

    Pauses the exceptions of the locks in ``here.holds`` and calls ``call(original, args, paused)``
    with the paused locks. ``mark``: an attribute that is set on each object whose method is looked
    up, which the interpreter does at the start of a ``with`` block.
    """

    __wrapped__: Callable[..., Any]
    def __new__(
        cls,
        original: Callable[..., Any],
        here: object,
        call: Callable[..., Any],
        mark: str | None = None,
    ) -> UninterruptedMethod: ...
    def __call__(self, *args: Any) -> Any: ...

@final
class Entry:
    """One attempt to enter a block. Owns the grant until the block has begun."""

    exception: AsyncException
    def __new__(cls) -> Entry:
        """For the calling thread."""

    def ask(self, pending: Pending[Guard | None]) -> None:
        """Own an operation that may grant the lock. The previous one is given back."""

    def take(self) -> Guard | None:
        """The result of the operation. This entry owns the guard from here on."""

    def give_back(self) -> None:
        """Cancel the operation, and release the grant."""

    def keep(self) -> None:
        """The lock stays held without this entry."""

@disjoint_base
class Scope:
    """``__enter__`` and ``__exit__`` of a ``with`` block.

    In Rust no exception arrives between two steps. The grant of an interrupted ``_enter`` is
    released. The exception is disarmed before ``_leave`` runs, and the guard is closed after it
    unless ``_leave`` returns that the lock is kept. ``_aenter`` and ``_aleave`` do the same for
    tasks.

    A subclass has these four methods, and ``_current_task``.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self: ...
    def __enter__(self) -> Any: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Any: ...
    def __aenter__(self) -> Any: ...
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        raised: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Any: ...

@final
class Steps:
    """The awaitable that ``__aenter__`` and ``__aexit__`` return."""

    def __await__(self) -> Steps: ...
    def __iter__(self) -> Steps: ...
    def __next__(self) -> Any: ...
    def send(self, value: Any) -> Any: ...
    def throw(self, *what: Any) -> Any: ...
    def close(self) -> None: ...

@final
class Guard:
    """One grant, or several that are held together. Released when it is dropped, unless `stay` was
    called.
    """

    tokens: list[tuple[str, int]]
    """The name and the token of each lock, in the order of the names."""
    holder: str
    slot: int | None
    """The number of the permit; ``None``: a lock, or several."""
    is_shared: bool
    """Whether other shared holders may hold the lock, too."""
    closed: bool
    """Whether it was released or handed over."""
    depth: int
    """The number of open blocks."""
    def is_held(self) -> bool:
        """Without I/O."""

    def trusted_for(self) -> float:
        """Seconds left of the lease, without I/O; 0: lost; infinity: without end."""

    def on_lost(self, callback: Callable[[Loss], object]) -> None:
        """Call ``callback`` with the loss, on a thread of the extension. After a `downgrade` with that
        of the shared grant.
        """

    def loss(self) -> Loss | None:
        """The loss, if the grant is lost. Without I/O."""

    def tickets(self) -> list[str] | None:
        """A ticket of each lock; ``None`` if the guard is closed."""

    def stay(self) -> None:
        """Dropped without a release, the lock stays held until its lease ends."""

    # A loss of this grant is a result of these methods and not an error.
    def check(self) -> Pending[Loss | None]: ...
    def extend(self, ttl: float | None) -> Pending[Loss | None]: ...
    def downgrade(self) -> Pending[Loss | None]:
        """Share the lock, which was held exclusively. Of one lock alone, and no permit."""

    def hand_over(self) -> str | Loss | None:
        """Of one lock alone."""

    def release(self) -> Pending[Loss | None]: ...
    def fence_failed(self, conflict: bool) -> Pending[Loss | None]:
        """Ask why a fence did not pass. The result is a loss; raises any other reason."""

    def fences(self, lasting: float | None = None) -> Pending[list[Fence] | Loss]:
        """Begin a fenced transaction. The result is a `Fence` of each lock, to be closed at the
        transaction's end.
        """

@final
class Fence:
    """The first statements of a fenced transaction. Closed or dropped when that has ended."""

    before: str | None
    """The first query, with ``%s`` for parameters, which finds one row; ``None``: none."""
    sql: str | None
    """The next statement, which finds or affects one row; ``None``: none."""
    params: tuple[str, int, str]
    """The parameters of both."""
    is_query: bool
    """Whether `sql` returns rows rather than affecting them."""

    def passes(self, rows: int) -> bool:
        """Whether this number of rows means that the lock is still held."""

    def close(self) -> None: ...

def is_fence_conflict(sqlstate: str | None = None, errno: int | None = None) -> bool | None:
    """Whether a driver's error is a conflict (`True`) or means no row (`False`); ``None``: another
    error.
    """
