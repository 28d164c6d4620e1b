"""The file of the locks beside the SQLite database of an application.

The two files have the same users: the first process that needs a lock may be a command run by root, or
one with a strict umask, and the others must get in all the same. SQLite gives its own additional files
(``-wal``, ``-shm``) mode and owner of the database; so does this module for the file of the locks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from urllib.parse import unquote_to_bytes

from ._urls import SUFFIX

#: What SQLite makes a database with, less the umask.
_NEW = 0o644
_READ_WRITE = 0o666


def prepare(url: str) -> None:
    """Make the file that a ``sqlite://`` URL names, unless it is there.

    With mode, group and owner of the database, as far as this process may give them. If the database
    is not there yet: as SQLite would make it. An error is left to the first lock, which reports it.
    """
    path = os.fsdecode(unquote_to_bytes(url.removeprefix("sqlite://")))
    if not url.startswith("sqlite:") or os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        _make(path, path.removesuffix(SUFFIX))


def _make(path: str, database: str) -> None:
    # Complete, and closed, before it has its name: closing a file gives up all locks that this
    # process has on it, and another process may open it at once.
    made = f"{path}.{secrets.token_hex(8)}"
    descriptor = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _NEW)
    try:
        try:
            with contextlib.suppress(FileNotFoundError):
                _liken(descriptor, os.stat(database))
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        os.unlink(made)


def _liken(descriptor: int, model: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, -1, model.st_gid)
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, model.st_uid, -1)
    mode = model.st_mode & _READ_WRITE
    if os.fstat(descriptor).st_gid != model.st_gid:
        # The rights of one group are not for another.
        mode &= ~0o060
    os.fchmod(descriptor, mode)
