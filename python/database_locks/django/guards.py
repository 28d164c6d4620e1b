"""The migration operation that puts the table of a model under the guard of a lock."""

from __future__ import annotations

from typing import Any, Literal

from django.db import NotSupportedError
from django.db.migrations.operations.base import Operation

from .. import _core
from . import conf, install

#: The reason why other engines refuse.
REASON = (
    "the locks are not in the database of the table, or its triggers cannot read them: guarded "
    'tables take PostgreSQL, MySQL or MariaDB. GuardTable(…, unsupported="skip") leaves the table '
    "unguarded here"
)


class GuardTable(Operation):
    """Let the database refuse every write to the table of a model in a transaction that does not
    hold a lock; backwards: remove the guard.

    >>> from database_locks.operations import GuardTable
    >>> GuardTable("Invoice", lock="ledger")
    <GuardTable  model_name='Invoice', lock='ledger'>

    The migration has ``("database_locks", "0003_permits")`` among its dependencies, so that the
    table of the locks exists. Under ``held.atomic()`` the ORM writes to the table as before.

    ``unsupported="skip"`` leaves the table unguarded on SQLite and other engines without guards,
    instead of failing. ``allow_cascades``: on MySQL and MariaDB, guard the table although cascades
    of its foreign keys pass by the guard.
    """

    reversible = True
    reduces_to_sql = True

    def __init__(
        self,
        model_name: str,
        # Not after a `*`: Django leaves keyword-only arguments out of the migrations it writes.
        lock: str,
        unsupported: Literal["refuse", "skip"] = "refuse",
        allow_cascades: bool = False,
    ) -> None:
        if unsupported not in ("refuse", "skip"):
            raise ValueError(f"`unsupported` is {unsupported!r}, must be 'refuse' or 'skip'")
        self.model_name = model_name
        self.lock = lock
        self.unsupported = unsupported
        self.allow_cascades = allow_cascades

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        options: dict[str, Any] = {"model_name": self.model_name, "lock": self.lock}
        if self.unsupported != "refuse":
            options["unsupported"] = self.unsupported
        if self.allow_cascades:
            options["allow_cascades"] = True
        return type(self).__qualname__, [], options

    def __repr__(self) -> str:
        _, _, options = self.deconstruct()
        words = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"<{type(self).__name__}  {words}>"

    def state_forwards(self, app_label: str, state: Any) -> None:
        """A guard is no part of a model."""

    def database_forwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        table = self._table(app_label, schema_editor, to_state)
        if table is not None:
            _require_locks(schema_editor)
            _guard(schema_editor, table, self.lock, self.allow_cascades)

    def database_backwards(
        self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any
    ) -> None:
        table = self._table(app_label, schema_editor, to_state)
        if table is not None:
            _unguard(schema_editor, table)

    def _table(self, app_label: str, schema_editor: Any, state: Any) -> str | None:
        """The table, if it is guarded in this database."""
        model = state.apps.get_model(app_label, self.model_name)
        connection = schema_editor.connection
        if not self.allow_migrate_model(connection.alias, model):
            return None
        if connection.vendor in ("postgresql", "mysql"):
            table: str = model._meta.db_table
            return table
        if self.unsupported == "skip":
            return None
        raise NotSupportedError(f"{model._meta.db_table} cannot be guarded: {REASON}")

    def describe(self) -> str:
        return f"Guard the table of {self.model_name} by the lock {self.lock}"

    @property
    def migration_name_fragment(self) -> str:
        return f"guard_{self.model_name.lower()}"


def _require_locks(schema_editor: Any) -> None:
    """Name the missing dependency, rather than a missing table."""
    connection = schema_editor.connection
    if schema_editor.collect_sql:
        return
    with connection.cursor() as cursor:
        if install.TABLE in connection.introspection.table_names(cursor):
            return
    raise NotSupportedError(
        f"there is no table {install.TABLE} in the database {connection.alias!r}: add "
        '("database_locks", "0003_permits") to the dependencies of this migration'
    )


def _guard(schema_editor: Any, table: str, lock: str, allow_cascades: bool) -> None:
    connection = schema_editor.connection
    quoted = schema_editor.quote_name(table)
    if connection.vendor == "postgresql":
        # In the transaction of the migration, which cannot be tried again: the script waits for
        # writers for some seconds, or as `lock_timeout` says, and fails with the reason.
        schema_editor.execute(_core.guard_script(quoted, lock).strip().rstrip(";"), params=None)
    elif schema_editor.collect_sql:
        mariadb, cluster = connection.mysql_is_mariadb, _on_cluster(connection)
        for statement in _core.guard_triggers(table, lock, mariadb, cluster):
            schema_editor.execute(statement, params=None)
    else:
        # On a connection of its own, which sees the table: DDL commits there.
        conf.locks_of(connection.alias).guard_table(quoted, lock, allow_cascades=allow_cascades)


def _on_cluster(connection: Any) -> bool:
    """Whether several nodes of the server are writable, where other triggers are needed: a row lock
    is not seen by the other nodes.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SHOW VARIABLES WHERE Variable_name IN ('wsrep_on', 'group_replication_group_name', "
            "'group_replication_single_primary_mode')"
        )
        return _is_cluster({name.lower(): value for name, value in cursor.fetchall()})


def _is_cluster(variables: dict[str, str]) -> bool:
    """Galera, or Group Replication with several primaries."""

    def on(name: str) -> bool:
        return variables.get(name, "") not in ("", "0", "OFF")

    in_group = bool(variables.get("group_replication_group_name"))
    return on("wsrep_on") or (in_group and not on("group_replication_single_primary_mode"))


def _unguard(schema_editor: Any, table: str) -> None:
    connection = schema_editor.connection
    quoted = schema_editor.quote_name(table)
    if connection.vendor == "postgresql":
        schema_editor.execute(_core.unguard_script(quoted).strip().rstrip(";"), params=None)
    elif schema_editor.collect_sql:
        schema_editor.collected_sql.append(
            "-- Where these names were taken when the table was guarded, its triggers have others: "
            "`dblock unguard` finds them."
        )
        for statement in _core.unguard_triggers(table):
            schema_editor.execute(statement, params=None)
    else:
        conf.locks_of(connection.alias).unguard_table(quoted)
