"""A user of a database server whose password changes."""

from __future__ import annotations

import contextlib
from urllib.parse import urlsplit

from .sql import sql
from .waiting import eventually


class Rotating:
    """``url`` is the superuser's; ``without`` is that of the user, without a password."""

    def __init__(self, url: str) -> None:
        self.url = url
        parts = urlsplit(url)
        self.is_postgres = parts.scheme == "postgres"
        # On PostgreSQL the one user whom the test server asks for a password.
        self.user = "locker" if self.is_postgres else "rotating"
        self.host, self.port, self.database = parts.hostname, parts.port, parts.path[1:]
        self.without = f"{parts.scheme}://{self.user}@{parts.hostname}:{parts.port}{parts.path}"

    def change(self, password: str) -> None:
        """Give it another one, and close its connections."""
        if self.is_postgres:
            sql(self.url, f"ALTER ROLE {self.user} PASSWORD '{password}'")
            sql(self.url, f"GRANT ALL ON database_locks_lock TO {self.user}")
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s"
            sql(self.url, end, self.user)
            return
        who = f"'{self.user}'@'127.0.0.1'"
        sql(self.url, f"CREATE USER IF NOT EXISTS {who}")
        sql(self.url, f"ALTER USER {who} IDENTIFIED BY '{password}'")
        sql(self.url, f"GRANT ALL ON `{self.database}`.* TO {who}")
        ids = "SELECT id FROM information_schema.processlist WHERE user = %s"
        for (process,) in sql(self.url, ids, self.user):
            # It may have ended meanwhile.
            with contextlib.suppress(Exception):
                sql(self.url, f"KILL {process}")

    def mend(self) -> None:
        """Give it what the other tests log in with."""
        if self.is_postgres:
            sql(self.url, "ALTER ROLE locker PASSWORD 'p@ss:w/rd?#%% &=''é'")

    def is_renewed(self, name: str) -> None:
        """Wait until a held lock is renewed again."""
        found = "SELECT renewed_at FROM database_locks_lock WHERE name = %s"
        before = sql(self.url, found, name)
        eventually(lambda: sql(self.url, found, name) != before, f"{name} is renewed")
