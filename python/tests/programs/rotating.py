"""A project whose back end makes the password at each connect: ``rotating.py WHAT URL``.

Prints ``done`` on success. ``URL`` is that of a table, with the rights of the superuser.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import types
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core import checks
from django.db import connection

from support import TIMEOUT, Rotating

what, url = sys.argv[1:]
if importlib.util.find_spec("MySQLdb") is None:
    import pymysql

    # Django asks for a version of mysqlclient.
    pymysql.version_info = (2, 2, 1, "final", 0)
    pymysql.install_as_MySQLdb()
who = Rotating(url)
engine = "django.db.backends." + ("postgresql" if who.is_postgres else "mysql")
secret = ["first"]
#: The thread of each call.
asked: list[str] = []
fails: list[Exception] = []


def token_backend() -> str:
    """As django-iam-dbauth: options of its own, and a token for each connection."""
    base: Any = importlib.import_module(f"{engine}.base")

    class DatabaseWrapper(base.DatabaseWrapper):
        def get_connection_params(self) -> dict[str, Any]:
            params: dict[str, Any] = super().get_connection_params()
            assert params.pop("use_token") is True
            asked.append(threading.current_thread().name)
            if fails:
                raise fails[0]
            params["user"] = who.user
            params["password"] = secret[0]
            return params

    for name in ("token_backend", "token_backend.base"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["token_backend"].__path__ = []  # type: ignore[attr-defined]
    sys.modules["token_backend.base"].DatabaseWrapper = DatabaseWrapper  # type: ignore[attr-defined]
    return "token_backend"


def configure(engine: str, **entry: Any) -> None:
    place = {"HOST": who.host, "PORT": who.port, "NAME": who.database}
    settings.configure(
        DATABASES={"default": {"ENGINE": engine, **place, **entry}},
        INSTALLED_APPS=["database_locks"],
    )
    django.setup()
    found = [str(message) for message in checks.run_checks() if message.level >= checks.ERROR]
    assert not found, found


def survives(change: Any) -> None:
    """A lock that is held while the password changes, and a new one."""
    from database_locks import lock

    with lock("held", timeout=TIMEOUT, lock_ttl=20, lock_ttl_renew=19.5) as held:
        change()
        who.is_renewed("held")
        assert not held.lost
        with lock("new", timeout=TIMEOUT):
            pass


def rotate() -> None:
    secret[0] = "second"
    who.change("second")


def backend() -> None:
    configure(token_backend(), USER="of-the-settings", OPTIONS={"use_token": True})
    # A check asks for no token.
    assert not asked, asked
    survives(rotate)
    assert set(asked) == {"database-locks-login"}, asked
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def failing() -> None:
    from database_locks import LockUnavailable, lock

    configure(token_backend(), OPTIONS={"use_token": True})
    fails.append(RuntimeError("the token service is down"))
    with (
        pytest.raises(LockUnavailable, match="RuntimeError: the token service is down") as caught,
        lock("job", timeout=3),
    ):
        pass
    assert caught.value.__cause__ is fails[0], caught.value.__cause__
    threading.Timer(0.5, fails.clear).start()
    with lock("job", timeout=TIMEOUT):
        pass


def settings_change() -> None:
    """As Vault's helpers do it: the settings are changed where they are."""
    configure(engine, USER=who.user, PASSWORD="first")
    from database_locks.django import conf

    before = conf.locks()

    def change() -> None:
        connection.settings_dict["PASSWORD"] = "second"
        who.change("second")

    survives(change)
    assert conf.locks() is before, "another password is no other place"


def file() -> None:
    """libpq's file of passwords, and the option file of MySQL's clients."""
    path = Path(os.environ["HOME"], "secret")

    def write(password: str) -> None:
        line = f"*:*:*:{who.user}:{password}\n"
        options = f"[client]\nuser={who.user}\npassword={password}\n"
        path.write_text(line if who.is_postgres else options)
        path.chmod(0o600)

    write("first")
    named = {"passfile" if who.is_postgres else "read_default_file": str(path)}
    configure(engine, USER=who.user if who.is_postgres else "", OPTIONS=named)

    def change() -> None:
        write("second")
        who.change("second")

    survives(change)


def service() -> None:
    """A service of libpq's."""
    path = Path(os.environ["HOME"], ".pg_service.conf")

    def write(password: str) -> None:
        place = f"host={who.host}\nport={who.port}\ndbname={who.database}\n"
        path.write_text(f"[app]\n{place}user={who.user}\npassword={password}\n")

    write("first")
    configure(engine, HOST="", PORT="", NAME="", OPTIONS={"service": "app"})

    def change() -> None:
        write("second")
        who.change("second")

    survives(change)


who.change("first")
try:
    globals()[what]()
finally:
    who.mend()
sys.stdout.write("done\n")
