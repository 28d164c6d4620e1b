"""Child processes that hold locks, and can be frozen and killed."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .waiting import TIMEOUT, eventually

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def tool(name: str) -> str:
    """A program that this repository builds: ``dblock``, ``test-servers``, ``test-holder``.

    ``DBLOCK_BIN`` is the first, ``DBLOCK_TESTKIT`` the directory of the others.
    """
    directory = Path(os.environ.get("DBLOCK_TESTKIT") or ROOT / "target" / "debug")
    path = (
        Path(os.environ.get("DBLOCK_BIN") or directory / name)
        if name == "dblock"
        else directory / name
    )
    assert path.is_file(), (
        f"no {path}: build it by `cargo test --workspace --all-features --no-run`"
    )
    return str(path)


def legacy_python() -> str:
    """The Python of the environment with legacy (django-database-locks 0.5): ``DBLOCK_OLD_PYTHON``."""
    path = Path(
        os.environ.get("DBLOCK_OLD_PYTHON") or ROOT / "target" / "python" / "old" / "bin" / "python"
    )
    assert path.exists(), f"no {path}: make it by `scripts/python-env`"
    return str(path)


def dblock(*args: str, url: str | None = None, check: bool = True) -> str:
    """Run the command; what it printed."""
    env = environment() | ({"DATABASE_LOCKS_URL": url} if url else {})
    done = subprocess.run(
        [tool("dblock"), *args], env=env, capture_output=True, text=True, timeout=60
    )
    assert not check or done.returncode == 0, f"dblock {args}: {done.returncode}\n{done.stderr}"
    return done.stdout


def environment(**more: str) -> dict[str, str]:
    """The environment, without variables that select a database or settings, and ``more``."""
    unwanted = {"DATABASE_LOCKS_URL", "DJANGO_SETTINGS_MODULE", "PYTHONPATH"}
    env = {name: value for name, value in os.environ.items() if name not in unwanted}
    return env | {"PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"} | more


def state_of(pid: int) -> str:
    """The state of a process as the letter of the kernel; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


class Program:
    """A child process whose lines are read; killed by :meth:`close`."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        group: bool = False,
    ) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the child
        self._group = group
        self.process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment() if env is None else dict(env),
            cwd=cwd,
            text=True,
            start_new_session=group,
        )
        self.pid = self.process.pid
        self.lines: list[str] = []
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def line(self, within: float = TIMEOUT) -> str | None:
        """The next line it prints; ``None`` when none comes in time, or its output has ended."""
        try:
            line = self._lines.get(timeout=within)
        except queue.Empty:
            return None
        if line is None:
            self._lines.put(None)
        else:
            self.lines.append(line)
        return line

    def expect(self, start: str, within: float = TIMEOUT) -> str:
        """The next line, which must come in time and begin so; the rest of it."""
        line = self.line(within)
        assert line is not None and line.startswith(start), self._story(
            f"wanted `{start}`, and got `{line}`"
        )
        return line[len(start) :].strip()

    def silent(self, seconds: float) -> None:
        """It says nothing for so long."""
        line = self.line(seconds)
        assert line is None and self.alive(), self._story(f"wanted nothing, and got `{line}`")

    def goes_on(self, seconds: float) -> None:
        """It does not end for so long, whatever it says."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self.process.wait(seconds)
            raise AssertionError(self._story(f"ended: {code}"))

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def alive(self) -> bool:
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def freeze(self) -> None:
        """By SIGSTOP: it holds what it holds, and knows nothing of the time that passes."""
        self.signal(signal.SIGSTOP)
        eventually(lambda: state_of(self.pid) in "TtZX", f"process {self.pid} stops")

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """By SIGKILL, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait(TIMEOUT)

    def wait(self, within: float = TIMEOUT) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        try:
            return self.process.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._story(f"still runs after {within:g} s")) from None

    @property
    def stderr(self) -> str:
        # Not by seek and read: the offset is the child's too.
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, 0).decode(errors="replace")

    def _story(self, what: str) -> str:
        lines = "\n".join(f"  {line}" for line in self.lines[-20:])
        return (
            f"{self.process.args!r}: {what}\nbefore that:\n{lines}\nstderr:\n{self.stderr[-6000:]}"
        )

    def close(self) -> None:
        if self._group:
            # The children too: a killed master does not stop its workers.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait(TIMEOUT)
        # A child of the child may hold the pipe open; then the reader stays, and does no harm.
        self._reader.join(2)
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if stream is not None and not self._reader.is_alive():
                    stream.close()
        self._stderr.close()


class Holder(Program):
    """A process that takes locks. It says ``held TOKEN`` and ``lost REASON``.

    The kinds: ``ours`` and ``old`` (0.5) are Python and can take one lock after the other;
    ``dblock`` and ``rust`` are one process a lock, started by :meth:`begin`.
    """

    def __init__(self, argv: Sequence[str], **how: Any) -> None:
        super().__init__(argv, **how)
        self.expect("ready")

    def begin(self, name: str, ttl: float = 10, **more: Any) -> None:
        """Begin to take a lock, and wait for it as long as it takes."""
        self.send("hold " + json.dumps({"lock_name": name, "lock_ttl": ttl, **more}))

    def hold(self, name: str, ttl: float = 10, **more: Any) -> None:
        self.begin(name, ttl, **more)
        self.expect_held()

    def expect_held(self, within: float = TIMEOUT) -> str:
        """It says that it has the lock; the token, where it knows of any."""
        return self.expect("held", within)

    def release(self) -> None:
        self.send("release")
        self.expect("released")

    def count(self, name: str, rounds: int, file: str | os.PathLike[str]) -> None:
        """Begin to add 1 to the number in a file, so many times, each time under the lock."""
        self.send("count " + json.dumps({"name": name, "rounds": rounds, "file": str(file)}))

    def is_held(self) -> bool:
        """Whether it believes so."""
        self.send("ask")
        return self.expect("is_held") == "true"


class Child(Holder):
    """This package in a Python process, on the table of a URL, without Django."""

    def __init__(self, url: str, **env: str) -> None:
        super().__init__([sys.executable, str(HERE / "holder.py"), url], env=environment(**env))


class LegacyHolder(Holder):
    """Legacy in its own environment."""

    def __init__(self, url: str, **env: str) -> None:
        super().__init__(
            [legacy_python(), str(HERE / "legacy_holder.py"), url], env=environment(**env)
        )

    def begin(self, name: str, ttl: float = 10, **more: Any) -> None:
        # Without renewals, which would go on past a release: a lock that was held for an instant
        # would be held for a ttl more.
        super().begin(name, ttl, **{"auto_renew": False} | more)

    def migrate(self) -> None:
        """Make the table by the migration of legacy."""
        self.send("migrate")
        self.expect("migrated", 60)

    def contend(self, name: str) -> None:
        """Acquire and release this lock, and locks with new names, again and again."""
        self.send(f"contend {name}")
        self.expect("contending")

    def stop_contending(self) -> int:
        """End contending; returns its rounds, none of which failed."""
        self.send("stop")
        return int(self.expect("stop"))


class _OneLock(Holder):
    """One process a lock: what :meth:`begin` starts."""

    def __init__(self, url: str) -> None:
        # Not started yet, and so not the constructor above.
        self._url = url
        self._started = False

    def _start(self, argv: Sequence[str]) -> None:
        if self._started:
            Program.close(self)
        Program.__init__(self, argv)
        self._started = True

    def close(self) -> None:
        if self._started:
            super().close()


class DblockHolder(_OneLock):
    """The command ``dblock run``."""

    def begin(self, name: str, ttl: float = 10, **_: Any) -> None:
        work = "echo held $DBLOCK_TOKEN; read -r word; echo released"
        dblock = [tool("dblock"), "--url", self._url, "run", f"--ttl={ttl}s", "--grace=100ms", name]
        self._start([*dblock, "--", "sh", "-c", work])

    def release(self) -> None:
        super().release()
        assert self.wait() == 0, self.stderr


class RustHolder(_OneLock):
    """The crate ``database-locks``, in the test kit's test-holder."""

    def begin(self, name: str, ttl: float = 10, **_: Any) -> None:
        self._start([tool("test-holder"), "hold", self._url, name, str(int(ttl * 1000))])


def holder(kind: str, url: str) -> Holder:
    """A holder by its kind: ``python``, ``legacy``, ``dblock``, ``rust``."""
    kinds: dict[str, type[Any]] = {
        "python": Child,
        "legacy": LegacyHolder,
        "dblock": DblockHolder,
        "rust": RustHolder,
    }
    made: Holder = kinds[kind](url)
    return made
