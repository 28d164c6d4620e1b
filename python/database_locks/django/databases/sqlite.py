"""SQLite: the file of the locks, beside the database of the application.

The two files have the same users. The first process that needs a lock may run as root or with a
strict umask, and the others must be able to use the file all the same. SQLite gives its own
additional files (``-wal``, ``-shm``) mode and owner of the database; `prepare` does the same for
the file of the locks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from urllib.parse import quote, unquote, unquote_to_bytes

from . import urls

#: Appended to the name of the application's file.
SUFFIX = ".locks"


def url_of(alias: str, settings: urls.Settings) -> str:
    """The URL of the file, or of memory for a database in memory.

    Never the application's own file: two copies of SQLite in one process, Python's and the core's,
    release each other's POSIX locks on a file.
    """
    name = settings.get("NAME")
    if isinstance(name, str):
        if name == ":memory:":
            return "memory:" + urls.encoded(f"django-{alias}")
        if "mode=memory" in name:
            # Shared by the threads of this process, like the database.
            return "memory:" + urls.encoded(name)
        if name.startswith("file:"):
            name = _path_of_uri(name)
    path = urls.text(name)
    if not path:
        raise urls.Refused("['NAME']", "is empty", "name the file of the database")
    # The real path: processes that open the database by different links share one file.
    return "sqlite://" + quote(os.fsencode(os.path.realpath(path) + SUFFIX), safe="/")


def _path_of_uri(uri: str) -> str:
    """``file:relative``, ``file:/absolute``, ``file:///absolute``, ``file://localhost/absolute``."""
    path = uri.removeprefix("file:").split("#")[0].split("?")[0]
    if path.startswith("//"):
        path = path[2:].removeprefix("localhost")
    return unquote(path)


#: The mode of a new SQLite database, before the umask.
_NEW = 0o644
_READ_WRITE = 0o666


def prepare(url: str) -> None:
    """Create the file that a ``sqlite://`` URL names, unless it exists.

    It gets mode, group and owner of the database, as far as this process may set them. If there is
    no database yet, it gets the defaults of SQLite. The first lock reports an error.
    """
    path = os.fsdecode(unquote_to_bytes(url.removeprefix("sqlite://")))
    if not url.startswith("sqlite:") or os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        _make(path, path.removesuffix(SUFFIX))


def _make(path: str, database: str) -> None:
    # Complete and closed before it gets its name: closing a file releases all POSIX locks of this
    # process on it, and another thread may open it at once.
    made = f"{path}.{secrets.token_hex(8)}"
    descriptor = os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _NEW)
    try:
        try:
            with contextlib.suppress(FileNotFoundError):
                _copy_owner(descriptor, os.stat(database))
        finally:
            os.close(descriptor)
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        os.unlink(made)


def _copy_owner(descriptor: int, model: os.stat_result) -> None:
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, -1, model.st_gid)
    with contextlib.suppress(PermissionError):
        os.fchown(descriptor, model.st_uid, -1)
    mode = model.st_mode & _READ_WRITE
    if os.fstat(descriptor).st_gid != model.st_gid:
        # The rights of the database's group are not for another group.
        mode &= ~0o060
    os.fchmod(descriptor, mode)
