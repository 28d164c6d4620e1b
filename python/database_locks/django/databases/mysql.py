"""MySQL and MariaDB: an entry of ``DATABASES`` to a URL of the core, with the defaults of the
drivers."""

from __future__ import annotations

import os
from typing import Any

from . import option_file, urls
from .tls import Tls

#: Options without effect on locks: the core has connections of its own, with utf8mb4, READ
#: COMMITTED, names compared byte for byte, and a deadline for each call.
IGNORED = frozenset(
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

#: Options of the drivers that take precedence over Django's own settings.
_LOGIN = {
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

#: Sockets of Debian, Red Hat, and MySQL's own default.
_SOCKETS = (
    "/run/mysqld/mysqld.sock",
    "/var/run/mysqld/mysqld.sock",
    "/var/lib/mysql/mysql.sock",
    "/tmp/mysql.sock",  # noqa: S108
)


def url_of(settings: urls.Settings, driver: str) -> tuple[str, list[urls.Problem]]:
    options: dict[str, Any] = dict(settings.get("OPTIONS") or {})
    problems: list[urls.Problem] = []
    host = urls.text(settings.get("HOST"))
    wanted = {
        "database": urls.text(settings.get("NAME")),
        "user": urls.text(settings.get("USER")),
        "password": urls.text(settings.get("PASSWORD")),
        # As in Django, a path is a socket.
        "socket": host if host.startswith("/") else "",
        "host": "" if host.startswith("/") else host,
        "port": urls.text(settings.get("PORT")),
    }
    pymysql = driver.split(".")[0] == "pymysql"
    file, group = options.pop("read_default_file", None), options.pop("read_default_group", None)
    tls = Tls(driver_checks_names=pymysql)
    for key, value in options.items():
        if key in IGNORED:
            continue
        if key in _LOGIN:
            wanted[_LOGIN[key]] = urls.text(value)
        elif not tls.takes(key, value, problems):
            problems.append(urls.unknown(key))
    if file or group:
        _fill_from_file(wanted, tls, file, group, pymysql, problems)
    url = urls.Url("mysql")
    url.user = wanted["user"] or urls.process_user()
    url.password = wanted["password"]
    url.database = wanted["database"]
    socket = wanted["socket"]
    if not socket and not pymysql and wanted["host"] in ("", "localhost"):
        # The C library uses the socket for `localhost`, whatever the port.
        variable = os.environ.get("MYSQL_UNIX_PORT")
        socket = urls.first_socket((variable,) if variable else _SOCKETS) or ""
    if socket:
        url.hosts = "localhost"
        url.options["socket"] = os.path.abspath(socket)
    else:
        port = wanted["port"]
        if port and not (port.isascii() and port.isdigit()):
            raise urls.Refused("['PORT']", "is no number", "give a port of 1 to 65535")
        url.hosts = urls.place(wanted["host"] or "localhost", "" if port == "0" else port)
    timeout = urls.whole_seconds(
        wanted.get("connect_timeout", ""), "['OPTIONS']['connect_timeout']"
    )
    if timeout:
        url.options["connect_timeout"] = timeout
    if wanted.get("init_command"):
        url.options["init_command"] = wanted["init_command"]
    tls.write(url.options, problems)
    return str(url), problems


def _fill_from_file(
    wanted: dict[str, str],
    tls: Tls,
    file: Any,
    group: Any,
    pymysql: bool,
    problems: list[urls.Problem],
) -> None:
    """Fill in missing settings from an option file of the clients."""
    path = urls.text(file)
    if pymysql:
        # PyMySQL reads one group.
        groups = [urls.text(group) or "client"]
        paths = [path or "/etc/my.cnf"]
    else:
        # The C library also reads its own groups.
        groups = ["client", "client-server", "client-mariadb"]
        groups += [urls.text(group)] if group and urls.text(group) not in groups else []
        paths = [path] if path else ["/etc/my.cnf", "/etc/mysql/my.cnf", "~/.my.cnf"]
    try:
        found = option_file.read(
            [os.path.expanduser(path) for path in paths],
            groups,
            must_exist=bool(path),
            plain=pymysql,
        )
    except option_file.Unreadable as error:
        raise urls.Refused(
            "['OPTIONS']['read_default_file']", f"names {error}", "give a file that can be read"
        ) from None
    for key in ("user", "password", "database", "host", "port", "socket", "init-command"):
        name = key.replace("-", "_")
        if not wanted.get(name) and found.get(key):
            # A host in the settings takes precedence over a socket in the file.
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
                urls.Problem(
                    "['OPTIONS']['read_default_file']",
                    f"has the option {key}, which cannot be used for locks",
                    f"use a file without it, or {urls.WAY_OUT}",
                )
            )


def _is_on(value: str | None) -> bool:
    # An option without a value is on.
    return value is not None and value.lower() not in ("0", "off", "false", "no")
