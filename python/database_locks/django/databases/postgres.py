"""PostgreSQL: an entry of ``DATABASES`` to a URL of the core, with the defaults of libpq."""

from __future__ import annotations

import os
import re
from typing import Any

from . import urls

#: Options that go into the URL unchanged.
_CARRIED = (
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

#: Options without effect on locks: the core has connections of its own.
IGNORED = frozenset(
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
        # libpq's: each call of the core has a deadline, so it needs no keep-alives
        "client_encoding",
        "fallback_application_name",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "sslcompression",
        "sslsni",
        "tcp_user_timeout",
        # The order of several servers
        "load_balance_hosts",
        # Without Kerberos they have no effect
        "gsslib",
        "krbsrvname",
    }
)

#: Options that are supported with these values only: others would ask for more than locks do.
_ONLY = {
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

#: Variables of libpq for options that this module needs to know. The core reads the others.
_ENVIRONMENT = {
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

#: The folders of sockets: Debian and Red Hat, and PostgreSQL's own default.
_SOCKETS = ("/var/run/postgresql", "/run/postgresql", "/tmp")  # noqa: S108


def url_of(settings: urls.Settings) -> tuple[str, list[urls.Problem]]:
    options: dict[str, Any] = dict(settings.get("OPTIONS") or {})
    problems: list[urls.Problem] = []
    wanted = {
        "dbname": urls.text(settings.get("NAME")),
        "user": urls.text(settings.get("USER")),
        "password": urls.text(settings.get("PASSWORD")),
        "host": urls.text(settings.get("HOST")),
        "port": urls.text(settings.get("PORT")),
    }
    role = urls.text(options.pop("assume_role", None))
    service = urls.text(options.get("service")) or os.environ.get("PGSERVICE", "")
    # Django's own default without a name and a service.
    if not wanted["dbname"] and not service:
        wanted["dbname"] = "postgres"
    hostaddr = urls.text(options.pop("hostaddr", None))
    for key, value in options.items():
        if key in IGNORED:
            continue
        if key in wanted or key in _CARRIED:
            wanted[key] = urls.text(value)
        elif key in _ONLY:
            if urls.text(value) not in _ONLY[key]:
                problems.append(urls.unsupported(key))
        else:
            problems.append(urls.unknown(key))
    for key, variable in _ENVIRONMENT.items():
        if not wanted.get(key):
            # A service takes precedence over the environment; the core reads both.
            wanted[key] = "" if service else os.environ.get(variable, "")
    url = urls.Url("postgres")
    url.user = wanted["user"] or ("" if service else urls.process_user())
    url.password = wanted["password"]
    url.database = wanted["dbname"]
    if hostaddr:
        if wanted["sslmode"] == "verify-full":
            problems.append(
                urls.unsupported("hostaddr", "would hide the name to be verified", "use HOST alone")
            )
        wanted["host"] = hostaddr
    if wanted["host"] or not service:
        url.hosts = _hosts(wanted["host"], wanted["port"])
    elif wanted["port"]:
        url.options["port"] = wanted["port"]
    if role:
        # As Django does: only the role may have the right to use the table.
        wanted["options"] = f"{wanted.get('options', '')} -c role={_escaped_option(role)}".strip()
    if not service and wanted["sslmode"] != "disable" and not url.hosts.startswith("%2F"):
        _add_certificates(wanted)
    wanted["connect_timeout"] = urls.whole_seconds(
        wanted.get("connect_timeout", ""), "['OPTIONS']['connect_timeout']"
    )
    for key in _CARRIED:
        if wanted.get(key):
            url.options[key] = wanted[key]
    return str(url), problems


def _add_certificates(wanted: dict[str, str]) -> None:
    """The default certificates of libpq, in the home folder."""
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
    """Escaped for ``options``, which the server splits at spaces."""
    return re.sub(r"([\\\s])", r"\\\1", value)


def _hosts(hosts: str, ports: str) -> str:
    if not hosts:
        port = ports or "5432"
        paths = (f"{folder}/.s.PGSQL.{port}" for folder in _SOCKETS)
        socket = urls.first_socket(paths)
        folder = os.path.dirname(socket) if socket else _SOCKETS[0]
        return urls.place(folder, ports)
    host_list = hosts.split(",")
    port_list = ports.split(",") if ports else [""]
    if len(port_list) == 1:
        port_list *= len(host_list)
    if len(port_list) != len(host_list):
        raise urls.Refused(
            "['PORT']",
            f"names {len(port_list)} ports for {len(host_list)} hosts",
            "give one port for all hosts, or one for each",
        )
    for port in port_list:
        if port and not (port.isascii() and port.isdigit()):
            raise urls.Refused("['PORT']", "is no number", "give a port of 1 to 65535")
    return ",".join(urls.place(host, port) for host, port in zip(host_list, port_list, strict=True))
