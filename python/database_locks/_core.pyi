"""The extension, in Rust. What is here is for this package; nothing of it is public."""

from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any, Generic, TypeVar, final

from typing_extensions import Self, disjoint_base

from ._loss import Loss

_T = TypeVar("_T")

__all__ = [
    "Alarm",
    "Answer",
    "Entry",
    "Fence",
    "Guard",
    "Locks",
    "Pending",
    "Scope",
    "Steps",
    "Undisturbed",
    "__version__",
    "check_url",
    "close",
    "close_log",
    "generation",
    "give_all_back",
    "is_critical",
    "is_fence_conflict",
    "next_record",
    "schema",
    "set_log_level",
    "set_program",
    "ticket_name",
]

__version__: str

def generation() -> int:
    """How many forks lie between this process and the one that first asked."""

def check_url(url: str, table: str | None = None) -> None:
    """Check a URL and the name of a table, without I/O. Raises `LockConfigError`."""

def ticket_name(ticket: str) -> str:
    """For which lock a ticket is. `LockConfigError` where it is none; it is not repeated."""

def schema(engine: str) -> str | None:
    """The statement that makes the table; ``{table}`` stands for its name."""

def set_program(path: str) -> None:
    """Say which program this is; the first call counts."""

def close() -> None:
    """Tell Python nothing more; the interpreter is about to end."""

def give_all_back() -> None:
    """Begin to release whatever this process holds, in all its threads; it acquires nothing more."""

def set_log_level(level: int) -> None:
    """Pass on log records from this level on."""

def next_record() -> tuple[float, int, str, dict[str, int | str]]:
    """Wait for a record of the core's: when, its level, the message and the fields.

    Does not return after `close_log`.
    """

def close_log(patience: float) -> bool:
    """Wait until the handlers have what was logged, for so many seconds at most, and end the passing
    on. Whether they had it all."""

@final
class Pending(Generic[_T]):
    """An operation that goes on in the background. Dropping it gives it up."""

    def wait(self, seconds: float) -> bool:
        """Wait so long at most, without the GIL; whether it is done. Ctrl-C is heeded."""

    def result(self) -> _T:
        """What came of it, once; raises what it raised. Only when done."""

    def then(self, callback: Callable[[], object]) -> None:
        """Call this when it is done: at once if it is, else on a thread of the extension."""

    def cancel(self) -> None:
        """Give it up: what it may have acquired is given back."""

@final
class Answer:
    """Where the answer of a function goes that was asked for a password or a URL."""

    def give(self, text: str) -> None:
        """What it says."""

    def fail(self, said: str, error: BaseException, *, final: bool) -> None:
        """Why it says nothing; ``final``: asking again is of no use."""

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
        password: Callable[[], str] | None = None,
        url_with: Callable[[], str] | None = None,
        environment: bool = True,
    ) -> Locks:
        """No I/O: the first call connects. `LockConfigError` for a bad URL, which is not repeated.

        The functions are called at each connect, for the password where the URL has none, and for
        another URL of the same database. ``environment=False``: what the URL leaves out is looked
        up nowhere.
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
        meta: str | None = None,
    ) -> Pending[Guard | None]:
        """Begin to acquire. Seconds; ``ttl=None``: without end; ``wait=None``: as long as it takes, 0: once.

        The result is a `Guard`, or ``None`` where ``wait`` is 0 and somebody else has it. Raises
        `LockTimeout` where another wait ran out.
        """

    def resume(
        self,
        ticket: str,
        *,
        ttl: float | None,
        auto_renew: bool = True,
        renew_every: float | None = None,
    ) -> Pending[Guard | None]:
        """Begin to go on with a lock that was handed over; the result is a `Guard`."""

    def migrate(self) -> Pending[None]: ...
    def list(self, *, free: bool = True) -> Pending[str]:
        """The result is a JSON text: one array, as `dblock list --all --json` prints it.

        ``free=False``: without those that are free.
        """

    def page(
        self, text: str, state: str | None, page: int, rows: int, order: str | None = None
    ) -> Pending[str]:
        """``order``: ``age`` (the longest held first), ``-age``, or ``None``: by state and name.

        The result is a JSON text: ``rows`` of one page, ``total``, and how many are ``held``,
        ``expired`` and ``free`` (``null`` where those were not read)."""

    def show(self, name: str) -> Pending[str | None]:
        """The result is a JSON text of one lock, or ``None`` where there is no such lock."""

    def force_release(self, name: str) -> Pending[tuple[str | None, float | None] | None]:
        """The result is ``(holder, held_for)``, or ``None`` where it was free."""

    def prune(self, idle: float, unknown: bool) -> Pending[int]:
        """The result is how many rows were deleted."""

    def doctor(self) -> Pending[str]:
        """The result is a JSON text, as `dblock doctor --json` prints it."""

    def drain(self) -> Pending[None]: ...
    def expire(self, name: str) -> Pending[bool]:
        """For tests, on the engine `memory`: the lease ends now. Whether there was one."""

    def lose(self, name: str) -> Pending[bool]:
        """For tests: released by force, and the holder in this process told at once."""

@final
class Alarm:
    """What can raise an exception in the thread that runs a body, as long as it runs."""

    armed: bool
    was_told: bool
    def __new__(cls) -> Alarm:
        """For the thread that calls this."""

    def raise_in_thread(
        self,
        exception: type[BaseException],
        codes: frozenset[CodeType],
        starts: frozenset[CodeType],
    ) -> bool:
        """Raise it there, once; its class has an attribute ``arrived``.

        `False`: it would do harm where the thread is just now, so ask again: see `is_critical`.
        """

    def told(self) -> bool:
        """The body was told: nothing more happens. Whether it had not been before."""

    def pause(self) -> bool: ...
    def told_in_pause(self) -> bool: ...
    def resume(self) -> None: ...
    def off(self) -> None: ...

def is_critical(frame: FrameType, codes: frozenset[CodeType], starts: frozenset[CodeType]) -> bool:
    """Whether one of the innermost frames is of a function with one of these codes; of ``starts``,
    those of `threading.Thread.start`, only until the new thread has its number.
    """

@final
class Undisturbed:
    """Stands in the place of a method.

    Pauses the alarms of the locks in ``here.holds`` and calls ``call(original, args, paused)`` with
    those that it has paused. ``mark``: an attribute that is set on each object whose method is looked
    up, as the interpreter does where a ``with`` block begins.
    """

    __wrapped__: Callable[..., Any]
    def __new__(
        cls,
        original: Callable[..., Any],
        here: object,
        call: Callable[..., Any],
        mark: str | None = None,
    ) -> Undisturbed: ...
    def __call__(self, *args: Any) -> Any: ...

@final
class Entry:
    """One attempt to enter a block: owns what it is granted until the block has begun."""

    alarm: Alarm
    def __new__(cls) -> Entry:
        """For the thread that calls this."""

    def ask(self, pending: Pending[Guard | None]) -> None:
        """Take charge of an operation that may grant the lock; what came before is given back."""

    def take(self) -> Guard | None:
        """The result of that operation, which is this entry's from here on."""

    def give_back(self) -> None:
        """Give up what was asked for, and give back what was granted."""

    def keep(self) -> None:
        """The lock is held from here on without this entry."""

@disjoint_base
class Scope:
    """The way into and out of a ``with`` block.

    In Rust, where no exception arrives between two steps: what an interrupted ``_enter`` was granted is
    given back; the alarm is off before ``_leave`` runs, and the guard closed after it unless that
    answers that the lock is kept. ``_aenter`` and ``_aleave`` are the same for tasks.
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
    """What ``__aenter__`` and ``__aexit__`` return: to be awaited."""

    def __await__(self) -> Steps: ...
    def __iter__(self) -> Steps: ...
    def __next__(self) -> Any: ...
    def send(self, value: Any) -> Any: ...
    def throw(self, *what: Any) -> Any: ...
    def close(self) -> None: ...

@final
class Guard:
    """One grant. Released when it is dropped, unless it is to `stay`."""

    name: str
    token: int
    grant_id: str
    holder: str
    closed: bool
    """Whether nothing is held by it any more."""
    depth: int
    """How many blocks are open that hold by it."""
    def is_held(self) -> bool:
        """Without I/O."""

    def trusted_for(self) -> float:
        """Seconds without I/O; 0: lost; infinity: without end."""

    def on_lost(self, callback: Callable[[Loss], object]) -> None:
        """Call this with the loss when it is lost, on a thread of the extension."""

    def loss(self) -> Loss | None:
        """How it was lost. Without I/O."""

    def ticket(self) -> str | None: ...
    def stay(self) -> None:
        """Dropped without a release, it stays held until its lease ends."""

    # A loss of its own grant is an answer of these and no error.
    def check(self) -> Pending[Loss | None]: ...
    def extend(self, ttl: float | None) -> Pending[Loss | None]: ...
    def hand_over(self) -> str | Loss | None: ...
    def release(self) -> Pending[Loss | None]: ...
    def fence_failed(self, conflict: bool) -> Pending[Loss | None]:
        """Ask why a fence did not pass; raises the answer where it is no loss."""

    def fence(self, lasting: float | None = None) -> Pending[Fence | Loss]:
        """Announce a fenced transaction; the result is a `Fence`, to be closed at its end."""

@final
class Fence:
    """What a fenced transaction begins with. Dropped or closed, that has ended."""

    before: str | None
    """To be run first, with ``%s`` for parameters: a query that finds one row. ``None``: nothing."""
    sql: str | None
    """To be run then: finds or affects one row. ``None``: nothing."""
    params: tuple[str, int, str]
    """Those of both."""
    is_query: bool
    """Whether `sql` returns rows, or else affects them."""

    def passes(self, rows: int) -> bool:
        """Whether so many rows say that the grant is there."""

    def close(self) -> None: ...

def is_fence_conflict(sqlstate: str | None = None, errno: int | None = None) -> bool | None:
    """Whether an error of a fence's statement is a conflict, or else no row; ``None``: neither."""
