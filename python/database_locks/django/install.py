"""Migration operations: they run the core's statements on a Django connection.

`dblock init` and `migrate` create the same tables, in any order. Neither changes what exists
already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from django.apps import apps
from django.db import OperationalError, router, transaction
from django.db.migrations.operations.base import Operation

from .. import _core

TABLE = "database_locks_lock"
PERMITS = "database_locks_permit"

#: The columns that legacy (django-database-locks 0.5) has.
LEGACY_COLUMNS = ("id", "name", "locked_by", "expires_at")

#: The columns that the second migration adds.
COLUMNS = tuple(name for name, _ in _core.columns("sqlite") if name not in LEGACY_COLUMNS)

#: Comments that `sqlmigrate` prints instead of a statement.
ALL_MADE = f"{TABLE} does not exist yet: 0001_initial creates it with all columns"
NOTHING_LACKS = f"{TABLE} has all columns already"
PERMITS_EXIST = f"{PERMITS} exists already"

#: Seconds for which a migration tries to lock the table, which other clients use for moments only.
TIMEOUT = 30.0
#: Seconds between two tries.
PAUSE = 0.05


def schema(engine: str) -> str:
    """The statement that creates the table; ``engine`` is ``postgres``, ``mysql`` or ``sqlite``."""
    text = _core.schema(engine)
    if text is None:
        raise LookupError(engine)
    return text.replace("{table}", TABLE)


def permit_schema(engine: str) -> str:
    """As `schema`, for the table of permits."""
    text = _core.permit_schema(engine)
    if text is None:
        raise LookupError(engine)
    return text.replace("{permits}", PERMITS)


class _LockTable(Operation):
    """The base class of the operations: selects the databases and the engine."""

    reversible = True
    atomic = False

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Other operations of the migration change the state."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        self._run("forwards", app_label, schema_editor)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        self._run("backwards", app_label, schema_editor)

    def _run(self, direction: str, app_label: str, schema_editor: Any) -> None:
        connection = schema_editor.connection
        if not router.allow_migrate(connection.alias, app_label, model_name="lock"):
            return
        table: type[_Table] = {
            "postgresql": _Postgres,
            "mysql": _Mysql,
            "sqlite": _Sqlite,
        }.get(connection.vendor, _Other)
        self.work(table(schema_editor), direction)

    def work(self, table: _Table, direction: str) -> None:
        raise NotImplementedError


class InstallTable(_LockTable):
    """Create the table; backwards: drop it."""

    def work(self, table: _Table, direction: str) -> None:
        table.install() if direction == "forwards" else table.drop()

    def describe(self) -> str:
        return "Create the table of locks, unless it exists"


class CompleteTable(_LockTable):
    """Add missing columns to a table of legacy; backwards: drop them."""

    def work(self, table: _Table, direction: str) -> None:
        table.complete() if direction == "forwards" else table.reduce()

    def describe(self) -> str:
        return "Add the columns that legacy (django-database-locks 0.5) lacks"


class InstallPermits(_LockTable):
    """Create the table of permits, for semaphores; backwards: drop it."""

    def work(self, table: _Table, direction: str) -> None:
        table.install_permits() if direction == "forwards" else table.drop_permits()

    def describe(self) -> str:
        return "Create the table of permits, unless it exists"


class _Table:
    """The tables in one engine."""

    #: The core's name of the engine.
    engine = ""

    def __init__(self, schema_editor: Any) -> None:
        self.editor = schema_editor
        self.connection = schema_editor.connection
        #: Whether statements are only collected, for `sqlmigrate`.
        self.shows = bool(schema_editor.collect_sql)

    def install(self) -> None:
        raise NotImplementedError

    def complete(self) -> None:
        self.install()

    def reduce(self) -> None:
        raise NotImplementedError

    def drop(self) -> None:
        self.with_retries(lambda: self.execute(f"DROP TABLE IF EXISTS {TABLE}"))

    def install_permits(self) -> None:
        # MySQL and MariaDB warn about an existing table, and projects make errors of warnings.
        if not self.has_permits():
            self.with_retries(lambda: self.execute(self.permit_schema()))
        elif self.shows:
            self.note(PERMITS_EXIST)

    def permit_schema(self) -> str:
        return permit_schema(self.engine)

    def has_permits(self) -> bool:
        with self.connection.cursor() as cursor:
            return PERMITS in self.connection.introspection.table_names(cursor)

    def drop_permits(self) -> None:
        if self.shows or self.has_permits():
            self.with_retries(lambda: self.execute(f"DROP TABLE IF EXISTS {PERMITS}"))

    def definition(self, column: str) -> str:
        """The definition of a column, as the statement of the schema has it."""
        return dict(_core.columns(self.engine))[column]

    def execute(self, statement: str) -> None:
        # Without parameters, so that a % is literal.
        self.editor.execute(statement.strip().rstrip(";"), params=None)

    def rows(self, query: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(query, params)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    def columns(self) -> set[str]:
        """The columns of the table; empty if there is no table."""
        with self.connection.cursor() as cursor:
            if TABLE not in self.connection.introspection.table_names(cursor):
                return set()
            described = self.connection.introspection.get_table_description(cursor, TABLE)
        return {column.name for column in described}

    def droppable(self) -> set[str]:
        """The columns that can be dropped; `sqlmigrate` without a table shows those of the
        migration.
        """
        there = self.columns()
        return set(COLUMNS) if self.shows and not there else there

    def note(self, text: str) -> None:
        """Print a comment instead of a statement."""
        self.editor.collected_sql.append(f"-- {text}")

    def with_retries(self, work: Callable[[], None]) -> None:
        """Run ``work`` again while other transactions are in its way."""
        until = time.monotonic() + TIMEOUT
        while True:
            try:
                return self.once(work)
            except OperationalError as error:
                if not self.is_contention(error) or time.monotonic() > until:
                    raise
            time.sleep(PAUSE)

    def once(self, work: Callable[[], None]) -> None:
        work()

    def is_contention(self, error: OperationalError) -> bool:
        return False


class _Postgres(_Table):
    engine = "postgres"
    #: Legacy's column has the default collation, whose index an upgrade of the C library may
    #: corrupt. Django's index for LIKE has no use.
    TIDY = f"""
        DO $tidy$
        DECLARE
            spare text;
        BEGIN
            PERFORM set_config('lock_timeout', '50ms', true);
            FOR spare IN
                SELECT c.oid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
                 WHERE i.indrelid = to_regclass('{TABLE}') AND c.relname LIKE '%name%\\_like'
            LOOP
                EXECUTE 'DROP INDEX ' || spare;
            END LOOP;
            IF (SELECT collname FROM pg_attribute a JOIN pg_collation c ON c.oid = a.attcollation
                 WHERE attrelid = to_regclass('{TABLE}') AND attname = 'name') <> 'C'
            THEN
                LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE NOWAIT;
                ALTER TABLE {TABLE} ALTER COLUMN name TYPE varchar(255) COLLATE "C";
            END IF;
        END
        $tidy$"""  # noqa: S608 - the name is ours

    def install(self) -> None:
        self.with_retries(lambda: self.execute(schema("postgres")))

    def complete(self) -> None:
        self.install()
        self.with_retries(lambda: self.execute(self.TIDY))

    def reduce(self) -> None:
        drops = ", ".join(f"DROP COLUMN IF EXISTS {column}" for column in COLUMNS)
        self.with_retries(lambda: self.execute(f"ALTER TABLE IF EXISTS {TABLE} {drops}"))

    def once(self, work: Callable[[], None]) -> None:
        if self.shows:
            return work()
        # A failure must not break a transaction of the caller.
        with transaction.atomic(using=self.connection.alias):
            # Later statements, renewals too, queue behind a waiting ALTER TABLE.
            self.execute("SET LOCAL lock_timeout = '50ms'")
            work()

    def is_contention(self, error: OperationalError) -> bool:
        cause = error.__cause__
        code = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
        return code in ("55P03", "40P01", "40001")


class _Mysql(_Table):
    engine = "mysql"

    def collation(self) -> str:
        mariadb: bool = self.connection.mysql_is_mariadb
        return "utf8mb4_nopad_bin" if mariadb else "utf8mb4_0900_bin"

    def schema(self) -> str:
        return schema("mysql").replace("{collation}", self.collation())

    def permit_schema(self) -> str:
        return super().permit_schema().replace("{collation}", self.collation())

    def definition(self, column: str) -> str:
        return super().definition(column).replace("{collation}", self.collation())

    def complete(self) -> None:
        if self.shows and not self.columns():
            return self.note(ALL_MADE)
        self.install()

    def install(self) -> None:
        if self.shows:
            # A statement that is only shown changes nothing: the loop below would not end.
            change = self.lacking()
            return self.note(NOTHING_LACKS) if change is None else self.execute(change)
        # If nothing is missing this only reads.
        while (change := self.lacking()) is not None:
            self.with_retries(partial(self.execute, change))

    ENGINE = """
        SELECT IFNULL(engine, ''), IFNULL(row_format, '') FROM information_schema.tables
         WHERE table_schema = DATABASE() AND table_name = %s"""
    FOUND = """
        SELECT column_name, IFNULL(character_set_name, ''), IFNULL(collation_name, '')
          FROM information_schema.columns
         WHERE table_schema = DATABASE() AND table_name = %s"""
    #: Unique indexes on the name and nothing else.
    KEYS = """
        SELECT index_name FROM information_schema.statistics
         WHERE table_schema = DATABASE() AND table_name = %s
         GROUP BY index_name
        HAVING MAX(non_unique) = 0 AND COUNT(*) = 1
           AND MAX(column_name) = 'name' AND MAX(sub_part) IS NULL"""

    def lacking(self) -> str | None:
        """The statement that completes the table; ``None`` if nothing is missing."""
        engine = self.rows(self.ENGINE, [TABLE])
        if not engine:
            return self.schema()
        found = {name: (charset, collation) for name, charset, collation in self.found()}
        changes = [
            f"ADD COLUMN {self.definition(column)}" for column in COLUMNS if column not in found
        ]
        if found["name"][1] != self.collation():
            changes.append(f"MODIFY {self.definition('name')}")
        if found["locked_by"][0] != "utf8mb4":
            changes.append(f"MODIFY {self.definition('locked_by')}")
        # The core's statements name the index.
        keys = [key for (key,) in self.rows(self.KEYS, [TABLE])]
        if not keys:
            changes.append("ADD UNIQUE KEY name (name)")
        elif "name" not in keys:
            changes.append(f"RENAME INDEX {self.editor.quote_name(keys[0])} TO name")
        # Other storage engines have no row locks.
        if engine[0][0] != "InnoDB":
            changes.append("ENGINE = InnoDB")
        # The index on names of utf8mb4 is too long for the older formats.
        if engine[0][1].lower() in ("compact", "redundant", "fixed"):
            changes.append("ROW_FORMAT = DYNAMIC")
        return f"ALTER TABLE {TABLE} {', '.join(changes)}" if changes else None

    def found(self) -> list[tuple[Any, ...]]:
        return self.rows(self.FOUND, [TABLE])

    def reduce(self) -> None:
        there = self.droppable()
        drops = ", ".join(f"DROP COLUMN {column}" for column in COLUMNS if column in there)
        if drops:
            self.with_retries(lambda: self.execute(f"ALTER TABLE {TABLE} {drops}"))

    def with_retries(self, work: Callable[[], None]) -> None:
        if self.shows:
            return work()
        (before,) = self.rows("SELECT @@SESSION.lock_wait_timeout")[0]
        # Later statements, renewals too, queue behind a waiting ALTER TABLE.
        self.execute("SET SESSION lock_wait_timeout = 1")
        try:
            super().with_retries(work)
        finally:
            self.execute(f"SET SESSION lock_wait_timeout = {int(before)}")

    def is_contention(self, error: OperationalError) -> bool:
        return error.args[:1] in ((1205,), (1213,))


class _Sqlite(_Table):
    """Tables in the application's own file. They stay empty, since the locks have a file of their
    own, unless ``DATABASE_LOCKS_URL`` names the application's.
    """

    engine = "sqlite"

    def install(self) -> None:
        self.execute(schema("sqlite"))

    def complete(self) -> None:
        there = self.columns()
        if self.shows and not there:
            return self.note(ALL_MADE)
        self.install()
        there = there or set(COLUMNS)
        if self.shows and there.issuperset(COLUMNS):
            self.note(NOTHING_LACKS)
        for column in COLUMNS:
            if column not in there:
                self.execute(f"ALTER TABLE {TABLE} ADD COLUMN {self.definition(column)}")

    def reduce(self) -> None:
        there = self.droppable()
        for column in COLUMNS:
            if column in there:
                self.execute(f"ALTER TABLE {TABLE} DROP COLUMN {column}")


class _Other(_Table):
    """An engine that cannot hold locks. The table stays empty, and exists for Django's model."""

    def install(self) -> None:
        if not self.shows and not self.columns():
            self.editor.create_model(apps.get_model("database_locks", "Lock"))

    def reduce(self) -> None:
        """The first migration drops the whole table."""

    def install_permits(self) -> None:
        """No model needs the table."""

    def drop_permits(self) -> None:
        """There is none."""

    def drop(self) -> None:
        if not self.shows and self.columns():
            self.editor.delete_model(apps.get_model("database_locks", "Lock"))
