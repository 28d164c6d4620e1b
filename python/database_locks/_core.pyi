"""The extension, in Rust. What is here is for this package; nothing of it is public."""

from collections.abc import Callable, Mapping
from typing import Any, final

__version__: str

def generation() -> int:
    """How many forks lie between this process and the one that first asked."""

def check_url(url: str, table: str | None = None) -> None:
    """Check a URL and the name of a table, without I/O. Raises `LockConfigError`."""

@final
class Pending:
    """An operation that goes on in the background. Dropping it gives it up."""

    def wait(self, seconds: float) -> bool:
        """Wait so long at most, without the GIL; whether it is done. Ctrl-C is heeded."""

    def result(self) -> Any:
        """What came of it, once; raises what it raised. Only when done."""

    def then(self, callback: Callable[[], object]) -> None:
        """Call this when it is done: at once if it is, else on a thread of the extension."""

    def cancel(self) -> None:
        """Give it up: what it may have acquired is given back."""

@final
class Locks:
    """The locks of one table."""

    def __new__(cls, url: str, table: str | None = None) -> Locks:
        """No I/O: the first call connects. `LockConfigError` for a bad URL, which is not repeated."""

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
        meta: Mapping[str, Any] | None = None,
    ) -> Pending:
        """Begin to acquire. Seconds; ``ttl=None``: without end; ``wait=None``: as long as it takes, 0: once.

        The result is a `Guard`, or ``None`` where ``wait`` is 0 and somebody else has it. Raises
        `LockTimeout` where another wait ran out.
        """

    def take_up(self, ticket: str, *, ttl: float | None, auto_renew: bool = True) -> Pending:
        """Begin to go on with a lock that was handed over; the result is a `Guard`."""

    def migrate(self) -> Pending: ...
    def connect(self) -> Pending: ...
    def list(self) -> Pending:
        """The result is a JSON text: one array, as `dblock list --all --json` prints it."""

    def show(self, name: str) -> Pending:
        """The result is a JSON text of one lock, or ``None`` where there is no such lock."""

    def force_release(self, name: str) -> Pending:
        """The result is ``(holder, held_for)``, or ``None`` where it was free."""

    def prune(self, idle: float, unknown: bool) -> Pending:
        """The result is how many rows were deleted."""

    def doctor(self) -> Pending:
        """The result is a JSON text, as `dblock doctor --json` prints it."""

    def drain(self) -> Pending: ...
    def expire(self, name: str) -> Pending:
        """For tests, on the engine `memory`: the lease ends now. Whether there was one."""

    def lose(self, name: str) -> Pending:
        """For tests: released by force, and the holder in this process told at once."""

@final
class Guard:
    """One grant. Released when it is dropped."""

    name: str
    token: int
    grant_id: str
    holder: str
    def is_held(self) -> bool:
        """Without I/O."""

    def trusted_for(self) -> float:
        """Seconds without I/O; 0: lost; infinity: without end."""

    def on_lost(self, callback: Callable[[str, str], object]) -> None:
        """Call this with the reason (a word, a sentence) when it is lost, on a thread of the extension."""

    def lost_reason(self) -> tuple[str, str] | None: ...
    def ticket(self) -> str: ...
    def check(self) -> Pending: ...
    def extend(self, ttl: float | None) -> Pending: ...
    def hand_over(self) -> str: ...
    def release(self) -> Pending: ...
    def fence(self, lasting: float | None = None) -> Pending:
        """Announce a fenced transaction; the result is a `Fence`, to be closed at its end."""

@final
class Fence:
    """What a fenced transaction begins with. Dropping or closing it says that the transaction has ended."""

    engine: str
    """``postgres``, ``mysql``, ``sqlite`` or ``memory``; the last two need no statement."""
    sql: str | None
    """With ``%s``; ``None`` where there is nothing to be sent."""
    params: tuple[Any, ...]
    def close(self) -> None: ...
