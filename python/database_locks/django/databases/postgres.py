"""From an entry of Django's ``DATABASES`` to the URL of the core.

Pure but for what the drivers read themselves: environment variables, option files, and whether a
socket is there. What cannot be carried over is told, never dropped: a lock in another
database than the one that was meant excludes nobody.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from . import _mycnf
from .exceptions import LockConfigError

Settings = Mapping[str, Any]

#: What to do where nothing else helps.
WAY_OUT = "give the locks a URL of their own with DATABASE_LOCKS_URL"


@dataclass(frozen=True)
class Problem:
    """What of a database's settings cannot be carried over.

    ``option`` names it as one finds it in the settings, ``said`` says why, ``hint`` what to do.
    """

    option: str
    said: str
    hint: str


class Refused(Exception):
    """The database cannot be used for locks as it is set up."""

    def __init__(self, option: str, said: str, hint: str) -> None:
        super().__init__(said)
        self.problem = Problem(option, said, hint)


@dataclass(frozen=True)
class Found:
    """The URL, with the password in it: never to be shown. ``None`` where there are problems."""

    url: str | None
    problems: tuple[Problem, ...]

    def url_of(self, alias: str) -> str:
        """The URL; `LockConfigError` names the alias, each option, and what to do."""
        if self.url is not None:
            return self.url
        said = "; ".join(
            f"DATABASES[{alias!r}]{problem.option}: {problem.said}: {problem.hint}"
            for problem in self.problems
        )
        raise LockConfigError(said)


def find(
    alias: str, vendor: str, settings: Settings, *, driver: str = "", all_options: bool = True
) -> Found:
    """Where the locks of a database are.

    ``vendor`` is Django's word for the engine (``connection.vendor``), so that GIS back ends and
    wrappers of other packages are told by what they are. ``driver`` is the module that Django
    talks to the server with: the drivers of MySQL read their option files differently. Without
    ``all_options`` those that are not known are passed over: a back end takes them out itself.
    """
    try:
        if vendor == "postgresql":
            url, problems = _postgres(settings)
        elif vendor == "mysql":
            url, problems = _mysql(settings, driver)
        elif vendor == "sqlite":
            url, problems = _sqlite(alias, settings), []
        else:
            raise Refused(
                "['ENGINE']",
                f"locks cannot live in {settings.get('ENGINE') or vendor}",
                "they can in PostgreSQL, MySQL, MariaDB and SQLite: name one of those with "
                "DATABASE_LOCKS_ALIAS, or " + WAY_OUT,
            )
    except Refused as refused:
        return Found(None, (refused.problem,))
    if not all_options:
        problems = [problem for problem in problems if problem.said != _UNKNOWN]
    return Found(None if problems else url, tuple(problems))


def find_by_params(
    alias: str, vendor: str, params: Mapping[str, Any], settings: Settings, *, driver: str = ""
) -> Found:
    """The same from what ``get_connection_params()`` says, which is for the driver."""
    options = dict(params)
    role = (settings.get("OPTIONS") or {}).get("assume_role")
    if vendor == "postgresql" and role and "assume_role" not in options:
        # Django sets it on the connection that it has made.
        options["assume_role"] = role
    said = {"ENGINE": settings.get("ENGINE"), "OPTIONS": options}
    return find(alias, vendor, said, driver=driver)


# What belongs to both servers.


class _Url:
    """A URL in the making: nothing in it is shown or parsed again."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.user = ""
        self.password = ""
        self.places = ""
        self.database = ""
        self.options: dict[str, str] = {}

    def __str__(self) -> str:
        login = _encoded(self.user)
        if self.password:
            login += ":" + _encoded(self.password)
        if login:
            login += "@"
        options = "&".join(f"{key}={_encoded(value)}" for key, value in self.options.items())
        database = _encoded(self.database)
        return f"{self.scheme}://{login}{self.places}/{database}" + (options and "?" + options)


def _encoded(text: str) -> str:
    # What is not UTF-8 (a path, say) goes in as its bytes: the core says that it takes UTF-8 only.
    return quote(text.encode("utf-8", "surrogateescape"), safe="")


def _place(host: str, port: str) -> str:
    """One host as it stands in a URL; a path is a socket."""
    if host.startswith("/"):
        shown = _encoded(host)
    elif ":" in host:
        shown = f"[{host}]"
    else:
        # Letters of other scripts are the resolver's business.
        shown = _encoded(host)
    return f"{shown}:{port}" if port else shown


def _text(value: Any) -> str:
    return (
        "" if value is None else os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    )


def _whole_seconds(value: str, option: str) -> str:
    """As the drivers take it: none, nought and less mean their own default."""
    if not value:
        return ""
    try:
        seconds = int(float(value))
    except (ValueError, OverflowError):
        raise Refused(option, "is no number", "a number of seconds") from None
    return str(seconds) if seconds > 0 else ""


def _process_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return ""


_UNKNOWN = "is not known to the locks"


def _cannot(option: str, said: str, hint: str) -> Problem:
    return Problem(f"['OPTIONS'][{option!r}]", said, f"{hint}, or {WAY_OUT}")


def _first_socket(paths: Iterable[str]) -> str | None:
    return next((path for path in paths if os.path.exists(path)), None)


# PostgreSQL

#: Carried over as they are, but for the place and the login.
_POSTGRES_CARRIED = (
    "application_name",
    "channel_binding",
    "connect_timeout",
    "options",
    "passfile",
    "service",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "target_session_attrs",
)

#: Of no concern to locks, whose connection is the core's own.
POSTGRES_IGNORED = frozenset(
    {
        # Django's own
        "isolation_level",  # the statements are right in each
        "pool",
        "server_side_binding",
        # The drivers' own
        "async",
        "async_",
        "autocommit",
        "connection_factory",
        "context",
        "cursor_factory",
        "prepare_threshold",
        "row_factory",
        # libpq's: each call of the core has a deadline of its own, so that it needs no keep-alives
        "client_encoding",
        "fallback_application_name",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
        # Which of several servers comes first
        "load_balance_hosts",
        # Where Kerberos is not asked for, they mean nothing
        "gsslib",
        "krbsrvname",
    }
)

#: Only in some values: anything else would be less than was asked for.
_POSTGRES_ONLY = {
    "gssencmode": ("disable", "prefer"),
    "requirepeer": ("",),
    "require_auth": ("",),
    "ssl_min_protocol_version": ("", "TLSv1", "TLSv1.1", "TLSv1.2"),
    "ssl_max_protocol_version": ("", "TLSv1.3"),
    "sslcrl": ("",),
    "sslcrldir": ("",),
    "sslnegotiation": ("", "postgres"),
    "sslpassword": ("",),
    "gssdelegation": ("", "0"),
    "replication": ("", "0", "false", "off", "no"),
}

#: What libpq takes from the environment where the settings say nothing, and what is said here of it.
#: The core looks up the rest.
_POSTGRES_ENVIRONMENT = {
    "host": "PGHOST",
    "port": "PGPORT",
    "user": "PGUSER",
    "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
}

#: Where servers put their sockets: Debian and Red Hat, and PostgreSQL itself.
_POSTGRES_SOCKETS = ("/var/run/postgresql", "/run/postgresql", "/tmp")  # noqa: S108


def _postgres(settings: Settings) -> tuple[str, list[Problem]]:
    options: dict[str, Any] = dict(settings.get("OPTIONS") or {})
    problems: list[Problem] = []
    wanted = {
        "dbname": _text(settings.get("NAME")),
        "user": _text(settings.get("USER")),
        "password": _text(settings.get("PASSWORD")),
        "host": _text(settings.get("HOST")),
        "port": _text(settings.get("PORT")),
    }
    role = _text(options.pop("assume_role", None))
    service = _text(options.get("service")) or os.environ.get("PGSERVICE", "")
    # Django's own default, where neither a name nor a service is given.
    if not wanted["dbname"] and not service:
        wanted["dbname"] = "postgres"
    hostaddr = _text(options.pop("hostaddr", None))
    for key, value in options.items():
        if key in POSTGRES_IGNORED:
            continue
        if key in wanted or key in _POSTGRES_CARRIED:
            wanted[key] = _text(value)
        elif key in _POSTGRES_ONLY:
            if _text(value) not in _POSTGRES_ONLY[key]:
                problems.append(_cannot(key, "cannot be carried over", "leave it out"))
        else:
            problems.append(_cannot(key, _UNKNOWN, "leave it out"))
    for key, variable in _POSTGRES_ENVIRONMENT.items():
        if not wanted.get(key):
            # A service comes before the environment; the core reads both then.
            wanted[key] = "" if service else os.environ.get(variable, "")
    url = _Url("postgres")
    url.user = wanted["user"] or ("" if service else _process_user())
    url.password = wanted["password"]
    url.database = wanted["dbname"]
    if hostaddr:
        if wanted["sslmode"] == "verify-full":
            problems.append(
                _cannot("hostaddr", "would hide the name to be verified", "use HOST alone")
            )
        wanted["host"] = hostaddr
    if wanted["host"] or not service:
        url.places = _postgres_places(wanted["host"], wanted["port"])
    elif wanted["port"]:
        url.options["port"] = wanted["port"]
    if role:
        # As a connection of Django's does: the right to the table may be the role's alone.
        wanted["options"] = f"{wanted.get('options', '')} -c role={_escaped_option(role)}".strip()
    if not service and wanted["sslmode"] != "disable" and not url.places.startswith("%2F"):
        _postgres_certificates(wanted)
    wanted["connect_timeout"] = _whole_seconds(
        wanted.get("connect_timeout", ""), "['OPTIONS']['connect_timeout']"
    )
    for key in _POSTGRES_CARRIED:
        if wanted.get(key):
            url.options[key] = wanted[key]
    return str(url), problems


def _postgres_certificates(wanted: dict[str, str]) -> None:
    """What libpq takes from the home folder where the settings say nothing."""
    folder = os.path.expanduser("~/.postgresql")
    for key, file in (
        ("sslrootcert", "root.crt"),
        ("sslcert", "postgresql.crt"),
        ("sslkey", "postgresql.key"),
    ):
        path = os.path.join(folder, file)
        if not wanted.get(key) and os.path.exists(path):
            wanted[key] = path


def _escaped_option(value: str) -> str:
    """As the server splits the words of ``options``."""
    return re.sub(r"([\\\s])", r"\\\1", value)


def _postgres_places(hosts: str, ports: str) -> str:
    if not hosts:
        port = ports or "5432"
        paths = (f"{folder}/.s.PGSQL.{port}" for folder in _POSTGRES_SOCKETS)
        socket = _first_socket(paths)
        folder = os.path.dirname(socket) if socket else _POSTGRES_SOCKETS[0]
        return _place(folder, ports)
    host_list = hosts.split(",")
    port_list = ports.split(",") if ports else [""]
    if len(port_list) == 1:
        port_list *= len(host_list)
    if len(port_list) != len(host_list):
        raise Refused(
            "['PORT']",
            f"names {len(port_list)} ports for {len(host_list)} hosts",
            "one port for all hosts, or one for each",
        )
    for port in port_list:
        if port and not (port.isascii() and port.isdigit()):
            raise Refused("['PORT']", "is no number", "a port of 1 to 65535")
    return ",".join(_place(host, port) for host, port in zip(host_list, port_list, strict=True))


# MySQL and MariaDB

#: Of no concern to locks, whose connection is the core's own: it speaks utf8mb4 and READ COMMITTED,
#: compares names byte for byte, and each of its calls has a deadline.
MYSQL_IGNORED = frozenset(
    {
        # Django's own
        "isolation_level",
        # The drivers' own
        "auth_plugin",
        "autocommit",
        "binary_prefix",
        "charset",
        "client_flag",
        "collation",
        "compress",
        "conv",
        "cursorclass",
        "defer_connect",
        "local_infile",
        "max_allowed_packet",
        "program_name",
        "read_timeout",
        "server_public_key",
        "sql_mode",
        "use_unicode",
        "write_timeout",
    }
)

#: The drivers' words for what Django's settings say as well; the options count.
_MYSQL_LOGIN = {
    "user": "user",
    "passwd": "password",
    "password": "password",
    "db": "database",
    "database": "database",
    "host": "host",
    "port": "port",
    "unix_socket": "socket",
    "connect_timeout": "connect_timeout",
    "init_command": "init_command",
}

#: Debian, Red Hat, and MySQL itself.
_MYSQL_SOCKETS = (
    "/run/mysqld/mysqld.sock",
    "/var/run/mysqld/mysqld.sock",
    "/var/lib/mysql/mysql.sock",
    "/tmp/mysql.sock",  # noqa: S108
)


def _mysql(settings: Settings, driver: str) -> tuple[str, list[Problem]]:
    options: dict[str, Any] = dict(settings.get("OPTIONS") or {})
    problems: list[Problem] = []
    host = _text(settings.get("HOST"))
    wanted = {
        "database": _text(settings.get("NAME")),
        "user": _text(settings.get("USER")),
        "password": _text(settings.get("PASSWORD")),
        # As Django does: a path is a socket.
        "socket": host if host.startswith("/") else "",
        "host": "" if host.startswith("/") else host,
        "port": _text(settings.get("PORT")),
    }
    pymysql = driver.split(".")[0] == "pymysql"
    file, group = options.pop("read_default_file", None), options.pop("read_default_group", None)
    tls = _Tls(driver_checks_names=pymysql)
    for key, value in options.items():
        if key in MYSQL_IGNORED:
            continue
        if key in _MYSQL_LOGIN:
            wanted[_MYSQL_LOGIN[key]] = _text(value)
        elif not tls.takes(key, value, problems):
            problems.append(_cannot(key, _UNKNOWN, "leave it out"))
    if file or group:
        _fill_from_file(wanted, tls, file, group, pymysql, problems)
    url = _Url("mysql")
    url.user = wanted["user"] or _process_user()
    url.password = wanted["password"]
    url.database = wanted["database"]
    socket = wanted["socket"]
    if not socket and not pymysql and wanted["host"] in ("", "localhost"):
        # To the C library `localhost` is the socket, whatever the port.
        variable = os.environ.get("MYSQL_UNIX_PORT")
        socket = _first_socket((variable,) if variable else _MYSQL_SOCKETS) or ""
    if socket:
        url.places = "localhost"
        url.options["socket"] = os.path.abspath(socket)
    else:
        port = wanted["port"]
        if port and not (port.isascii() and port.isdigit()):
            raise Refused("['PORT']", "is no number", "a port of 1 to 65535")
        url.places = _place(wanted["host"] or "localhost", "" if port == "0" else port)
    timeout = _whole_seconds(wanted.get("connect_timeout", ""), "['OPTIONS']['connect_timeout']")
    if timeout:
        url.options["connect_timeout"] = timeout
    if wanted.get("init_command"):
        url.options["init_command"] = wanted["init_command"]
    tls.tell(url.options, problems)
    return str(url), problems


class _Tls:
    """What the options of either driver say of TLS."""

    def __init__(self, *, driver_checks_names: bool) -> None:
        # PyMySQL checks the certificate and the name as soon as there is a CA, mysqlclient the
        # name only when told to.
        self.checks_names = driver_checks_names
        self.mode = ""
        self.on = False
        self.off = False
        self.files: dict[str, str] = {}
        self.check_name: bool | None = None
        self.verify: bool | None = None

    def takes(self, key: str, value: Any, problems: list[Problem]) -> bool:
        """Whether this option is about TLS; remember what it says."""
        if key == "ssl":
            self._dict(value, problems)
        elif key == "ssl_mode":
            self.mode = _text(value)
        elif key == "ssl_disabled":
            self.off = bool(value)
        elif key in ("ssl_ca", "ssl_cert", "ssl_key"):
            if value:
                self._file(key.removeprefix("ssl_"), value)
        elif key == "ssl_verify_cert":
            self.verify = None if value is None else bool(value)
            self.on |= bool(value)
        elif key == "ssl_verify_identity":
            self.check_name = None if value is None else bool(value)
            self.on |= bool(value)
        elif key in ("ssl_key_password", "bind_address"):
            if value:
                problems.append(_cannot(key, "cannot be carried over", "leave it out"))
        else:
            return False
        return True

    def _file(self, what: str, path: Any) -> None:
        self.on = True
        self.files[what] = os.path.abspath(_text(path))

    def _dict(self, value: Any, problems: list[Problem]) -> None:
        if not isinstance(value, Mapping):
            if value is True:
                self.on = True
            elif value not in (None, False, ""):
                problems.append(
                    _cannot(
                        "ssl",
                        f"an object ({type(value).__name__}) cannot be carried over",
                        "a dict of ca, cert and key can",
                    )
                )
            return
        for key, said in value.items():
            if said is None or said == "":
                continue
            if key in ("ca", "cert", "key"):
                self._file(key, said)
            elif key == "check_hostname":
                self.on, self.check_name = True, bool(said)
            elif key == "verify_mode":
                self.on, self.verify = True, _verifies(said)
            else:
                problems.append(
                    Problem(
                        f"['OPTIONS']['ssl'][{key!r}]",
                        "cannot be carried over",
                        f"ca, cert, key, check_hostname and verify_mode can; or {WAY_OUT}",
                    )
                )

    def tell(self, options: dict[str, str], problems: list[Problem]) -> None:
        """Say the same in the core's words."""
        if self.off:
            options["sslmode"] = "disable"
            return
        ca = self.files.get("ca")
        if self.mode:
            mode = self.mode
        elif not self.on:
            # Neither driver asks for TLS then; the core takes it where it is offered.
            return
        elif ca is None or self.verify is False:
            mode = "require"
        else:
            names = self.checks_names if self.check_name is None else self.check_name
            mode = "verify-full" if names else "verify-ca"
        if self.verify and ca is None:
            problems.append(
                _cannot(
                    "ssl",
                    "asks for a verified certificate without saying by which CA",
                    "name the file of its CA: 'ca'",
                )
            )
        options["sslmode"] = mode
        # With a CA the core checks the chain whatever the mode says.
        if ca is not None and self.verify is not False:
            options["sslrootcert"] = ca
        for what, name in (("cert", "sslcert"), ("key", "sslkey")):
            if what in self.files:
                options[name] = self.files[what]


def _verifies(said: Any) -> bool | None:
    """PyMySQL's ``verify_mode``: a bool, a word, or a constant of `ssl`."""
    word = _text(said).lower()
    if word in ("none", "0", "false", "no", "verifymode.cert_none"):
        return False
    if word in ("optional", "1", "true", "yes", "required", "2"):
        return True
    return True


def _fill_from_file(
    wanted: dict[str, str],
    tls: _Tls,
    file: Any,
    group: Any,
    pymysql: bool,
    problems: list[Problem],
) -> None:
    """What the settings leave open, from an option file of the clients."""
    path = _text(file)
    if pymysql:
        # It reads one group.
        groups = [_text(group) or "client"]
        paths = [path or "/etc/my.cnf"]
    else:
        # The C library reads its own as well.
        groups = ["client", "client-server", "client-mariadb"]
        groups += [_text(group)] if group and _text(group) not in groups else []
        paths = [path] if path else ["/etc/my.cnf", "/etc/mysql/my.cnf", "~/.my.cnf"]
    try:
        found = _mycnf.read(
            [os.path.expanduser(path) for path in paths],
            groups,
            must_exist=bool(path),
            plain=pymysql,
        )
    except _mycnf.Unreadable as error:
        raise Refused(
            "['OPTIONS']['read_default_file']", str(error), "give a file that can be read"
        ) from None
    for key in ("user", "password", "database", "host", "port", "socket", "init-command"):
        name = key.replace("-", "_")
        if not wanted.get(name) and found.get(key):
            # A host of the settings is meant, and not the socket of the file.
            if key == "socket" and wanted.get("host") not in ("", "localhost", found.get("host")):
                continue
            wanted[name] = found[key]
    if not wanted.get("connect_timeout"):
        wanted["connect_timeout"] = found.get("connect-timeout", "")
    for key in ("ssl-ca", "ssl-cert", "ssl-key", "ssl-mode"):
        option = key.replace("-", "_")
        if found.get(key) and not (tls.mode if key == "ssl-mode" else key[4:] in tls.files):
            tls.takes(option, found[key], problems)
    if _is_on(found.get("ssl-verify-server-cert")) and tls.check_name is None:
        tls.check_name = True
        tls.on = True
    if "ssl" in found and not tls.mode:
        tls.on, tls.off = (True, tls.off) if _is_on(found["ssl"]) else (tls.on, tls.off)
    for key in ("ssl-capath", "ssl-cipher", "ssl-crl", "ssl-crlpath", "tls-version"):
        if found.get(key):
            problems.append(
                Problem(
                    "['OPTIONS']['read_default_file']",
                    f"its option {key} cannot be carried over",
                    f"use a file without it, or {WAY_OUT}",
                )
            )


def _is_on(value: str | None) -> bool:
    # Without a value an option of that file is on.
    return value is not None and value.lower() not in ("0", "off", "false", "no")


# SQLite

#: Put behind the name of the application's own file.
SUFFIX = ".locks"


def _sqlite(alias: str, settings: Settings) -> str:
    """A file beside the application's own, or memory where that is in memory.

    Never the application's own: Python's copy of SQLite and the core's, in one process, cancel each
    other's file locks.
    """
    name = settings.get("NAME")
    if isinstance(name, str):
        if name == ":memory:":
            return "memory:" + _encoded(f"django-{alias}")
        if "mode=memory" in name:
            # Of the threads of this process, as the database is.
            return "memory:" + _encoded(name)
        if name.startswith("file:"):
            name = _path_of_uri(name)
    path = _text(name)
    if not path:
        raise Refused("['NAME']", "is empty", "name the file of the database")
    # One file for all who open the application's own, by whatever link.
    return "sqlite://" + quote(os.fsencode(os.path.realpath(path) + SUFFIX), safe="/")


def _path_of_uri(uri: str) -> str:
    """``file:relative``, ``file:/absolute``, ``file:///absolute``, ``file://localhost/absolute``."""
    path = uri.removeprefix("file:").split("#")[0].split("?")[0]
    if path.startswith("//"):
        path = path[2:].removeprefix("localhost")
    return unquote(path)
