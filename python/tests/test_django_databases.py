"""From an entry of ``DATABASES`` to a URL: supported and refused settings."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from database_locks import _core
from database_locks.django import databases
from database_locks.django.databases import option_file, urls
from database_locks.exceptions import LockConfigError


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith(("PG", "MYSQL"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(urls, "process_user", lambda: "me")
    monkeypatch.setattr(urls, "first_socket", lambda paths: None)


def _entry(**settings: Any) -> dict[str, Any]:
    return {
        "ENGINE": "x",
        "NAME": "app",
        "USER": "u",
        "PASSWORD": "p",
        "HOST": "db",
        "PORT": "",
        **settings,
    }


def postgres(**settings: Any) -> str:
    return url("postgresql", _entry(**settings))


def mysql(driver: str = "MySQLdb", **settings: Any) -> str:
    return url("mysql", _entry(**settings), driver)


def url(vendor: str, settings: dict[str, Any], driver: str = "") -> str:
    return databases.find("default", vendor, settings, driver=driver).url_of("default")


def refused(vendor: str, driver: str = "", **settings: Any) -> str:
    with pytest.raises(LockConfigError) as caught:
        databases.find("main", vendor, _entry(**settings), driver=driver).url_of("main")
    message = str(caught.value)
    assert message.startswith("DATABASES['main']")
    assert "hunter2" not in message
    return message


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "postgres://u:p@db/app"),
        ({"PORT": 6000}, "postgres://u:p@db:6000/app"),
        ({"USER": "u@:", "PASSWORD": "a/b?c#d%é"},
         "postgres://u%40%3A:a%2Fb%3Fc%23d%25%C3%A9@db/app"),
        ({"NAME": "my db/ü"}, "postgres://u:p@db/my%20db%2F%C3%BC"),
        ({"HOST": "/run/pg", "PORT": "6000"}, "postgres://u:p@%2Frun%2Fpg:6000/app"),
        ({"HOST": "::1", "PORT": "1"}, "postgres://u:p@[::1]:1/app"),
        ({"HOST": "", "USER": "", "PASSWORD": ""}, "postgres://me@%2Fvar%2Frun%2Fpostgresql/app"),
        ({"HOST": "a,b", "PORT": "1,2"}, "postgres://u:p@a:1,b:2/app"),
        ({"HOST": "a,b", "PORT": "7"}, "postgres://u:p@a:7,b:7/app"),
        ({"NAME": "", "OPTIONS": {"dbname": "other"}}, "postgres://u:p@db/other"),
        ({"NAME": None}, "postgres://u:p@db/postgres"),
    ],
)  # fmt: skip
def test_host_database_and_user_of_postgresql_are_in_the_url(
    settings: dict[str, Any], expected: str
) -> None:
    assert postgres(**settings) == expected
    _core.check_url(expected)


def test_options_of_postgresql_are_in_the_url() -> None:
    found = postgres(
        OPTIONS={
            "sslmode": "verify-full",
            "sslrootcert": "/etc/ca one.pem",
            "sslcert": Path("/etc/c.pem"),
            "sslkey": "/etc/k.pem",
            "options": "-c search_path=locks,public",
            "target_session_attrs": "read-write",
            "application_name": "shop",
            "connect_timeout": 3.7,
            "channel_binding": "require",
        }
    )
    assert found.removeprefix("postgres://u:p@db/app?").split("&") == [
        "application_name=shop",
        "channel_binding=require",
        "connect_timeout=3",
        "options=-c%20search_path%3Dlocks%2Cpublic",
        "sslcert=%2Fetc%2Fc.pem",
        "sslkey=%2Fetc%2Fk.pem",
        "sslmode=verify-full",
        "sslrootcert=%2Fetc%2Fca%20one.pem",
        "target_session_attrs=read-write",
    ]


def test_a_role_is_assumed_as_django_does() -> None:
    found = postgres(OPTIONS={"assume_role": "lock er", "options": "-c a=b"})
    assert found.endswith("?options=-c%20a%3Db%20-c%20role%3Dlock%5C%20er")


def test_options_without_effect_on_locks_are_left_out() -> None:
    ours = {"pool": {"min_size": 2}, "isolation_level": 1, "server_side_binding": True}
    driver = {"cursor_factory": object, "prepare_threshold": None, "keepalives_idle": 3}
    assert postgres(OPTIONS={**ours, **driver}) == "postgres://u:p@db/app"
    ours = {"charset": "latin1", "sql_mode": "ANSI", "isolation_level": "serializable"}
    assert mysql(OPTIONS={**ours, "conv": {}, "read_timeout": 3}) == "mysql://u:p@db/app"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"sslpassword": "hunter2"}, "sslpassword"),
        ({"sslcrl": "/etc/crl.pem"}, "sslcrl"),
        ({"gssencmode": "require"}, "gssencmode"),
        ({"ssl_min_protocol_version": "TLSv1.3"}, "ssl_min_protocol_version"),
        ({"sslmod": "require"}, "sslmod"),
        ({"connect_timeout": "soon"}, "connect_timeout"),
        ({"hostaddr": "10.0.0.1", "sslmode": "verify-full"}, "hostaddr"),
    ],
)
def test_unsupported_options_of_postgresql_are_refused(options: dict[str, Any], word: str) -> None:
    message = refused("postgresql", OPTIONS=options, PASSWORD="hunter2")
    assert f"['OPTIONS']['{word}']" in message
    # And what to do.
    assert "DATABASE_LOCKS_URL" in message or "number of seconds" in message


def test_all_problems_are_reported_at_once() -> None:
    found = databases.find("x", "postgresql", _entry(OPTIONS={"requirepeer": "a", "sslcrl": "b"}))
    assert [problem.option for problem in found.problems] == [
        "['OPTIONS']['requirepeer']",
        "['OPTIONS']['sslcrl']",
    ]


def test_the_numbers_of_ports_and_hosts_must_match() -> None:
    assert "3 ports for 2 hosts" in refused("postgresql", HOST="a,b", PORT="1,2,3")
    assert "['PORT']" in refused("postgresql", PORT="hunter2x")
    assert "['PORT']" in refused("mysql", PORT="hunter2x")


def test_the_environment_of_libpq_fills_missing_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGHOST", "elsewhere")
    # The core asks for it at each connect.
    monkeypatch.setenv("PGPASSWORD", "env")
    monkeypatch.setenv("PGSSLMODE", "require")
    monkeypatch.setenv("PGUSER", "nobody")
    assert postgres(HOST="", PASSWORD="") == "postgres://u@elsewhere/app?sslmode=require"
    assert postgres(OPTIONS={"sslmode": "disable"}) == "postgres://u:p@db/app?sslmode=disable"


def test_a_service_and_a_password_file_are_left_to_the_core(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"service": "app", "passfile": "/p"}
    bare = {"NAME": "", "USER": "", "PASSWORD": "", "HOST": "", "PORT": ""}
    assert postgres(**bare, OPTIONS=files) == "postgres:///?passfile=%2Fp&service=app"
    assert postgres(OPTIONS=files) == "postgres://u:p@db/app?passfile=%2Fp&service=app"
    # It comes before the rest of the environment.
    monkeypatch.setenv("PGSERVICE", "app")
    monkeypatch.setenv("PGHOST", "elsewhere")
    assert postgres(**{**bare, "PORT": "7"}) == "postgres:///?port=7"


def test_connection_params_of_a_back_end_are_read_like_settings() -> None:
    settings = {"ENGINE": "x", "OPTIONS": {"assume_role": "r", "use_token": True}}
    params = {
        "dbname": "app",
        "user": "u",
        "password": "new",
        "host": "db",
        "client_encoding": "UTF8",
    }
    found = databases.find_by_params("default", "postgresql", params, settings)
    assert found.url == "postgres://u:new@db/app?options=-c%20role%3Dr"
    params = {"user": "u", "passwd": "new", "db": "app", "host": "db", "port": 1, "conv": {}}
    found = databases.find_by_params("default", "mysql", params, {"ENGINE": "x"}, driver="MySQLdb")
    assert found.url == "mysql://u:new@db:1/app"
    unknown = databases.find_by_params("default", "mysql", {**params, "hunter": 2}, {})
    assert unknown.url is None
    own = databases.find("default", "mysql", _entry(OPTIONS={"use_token": 1}), all_options=False)
    assert own.url == "mysql://u:p@db/app"


def test_certificates_of_the_home_folder_are_used_as_libpq_does(tmp_path: Path) -> None:
    (tmp_path / ".postgresql").mkdir()
    root = tmp_path / ".postgresql" / "root.crt"
    root.write_text("")
    found = postgres(OPTIONS={"sslmode": "verify-ca"})
    assert found.endswith("?sslmode=verify-ca&sslrootcert=" + urls.encoded(str(root)))
    assert "sslrootcert" not in postgres(OPTIONS={"sslmode": "disable"})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "mysql://u:p@db/app"),
        ({"PORT": "3307"}, "mysql://u:p@db:3307/app"),
        ({"HOST": "/run/my.sock"}, "mysql://u:p@localhost/app?socket=%2Frun%2Fmy.sock"),
        ({"HOST": "", "OPTIONS": {"unix_socket": "/run/my.sock"}},
         "mysql://u:p@localhost/app?socket=%2Frun%2Fmy.sock"),
        ({"HOST": "localhost"}, "mysql://u:p@localhost/app"),
        ({"NAME": "a", "OPTIONS": {"db": "b", "user": "v", "passwd": "q", "host": "h", "port": 1}},
         "mysql://v:q@h:1/b"),
        ({"OPTIONS": {"init_command": "SET NAMES utf8mb4; SET x=1", "connect_timeout": 5}},
         "mysql://u:p@db/app?connect_timeout=5&init_command=SET%20NAMES%20utf8mb4%3B%20SET%20x%3D1"),
    ],
)  # fmt: skip
def test_host_database_and_user_of_mysql_are_in_the_url(
    settings: dict[str, Any], expected: str
) -> None:
    assert mysql(**settings) == expected


def test_only_the_c_library_uses_the_socket_for_localhost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "first_socket", lambda paths: next(iter(paths)))
    expected = "mysql://u:p@localhost/app?socket=%2Frun%2Fmysqld%2Fmysqld.sock"
    assert mysql(HOST="localhost", PORT="3307") == expected
    assert mysql("pymysql", HOST="localhost", PORT="3307") == "mysql://u:p@localhost:3307/app"


_CA = {"ca": "/etc/ca.pem"}


@pytest.mark.parametrize(
    ("driver", "options", "expected"),
    [
        ("MySQLdb", {"ssl": _CA}, "sslmode=verify-ca&sslrootcert=%2Fetc%2Fca.pem"),
        ("pymysql", {"ssl": _CA}, "sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem"),
        ("pymysql", {"ssl": {**_CA, "check_hostname": False}},
         "sslmode=verify-ca&sslrootcert=%2Fetc%2Fca.pem"),
        ("pymysql", {"ssl": {**_CA, "verify_mode": "none"}}, "sslmode=require"),
        ("pymysql", {"ssl": {**_CA, "verify_mode": ssl.CERT_NONE}}, "sslmode=require"),
        ("pymysql", {"ssl_ca": "/etc/ca.pem", "ssl_verify_cert": True},
         "sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem"),
        ("MySQLdb", {"ssl_mode": "VERIFY_IDENTITY", "ssl": _CA},
         "sslmode=VERIFY_IDENTITY&sslrootcert=%2Fetc%2Fca.pem"),
        ("MySQLdb", {"ssl_mode": "DISABLED"}, "sslmode=DISABLED"),
        ("pymysql", {"ssl_disabled": True, "ssl": _CA}, "sslmode=disable"),
        ("MySQLdb", {"ssl": True}, "sslmode=require"),
        ("MySQLdb", {"ssl": {"cert": "/c", "key": "/k"}},
         "sslmode=require&sslcert=%2Fc&sslkey=%2Fk"),
        ("MySQLdb", {"ssl": {}}, ""),
    ],
)  # fmt: skip
def test_tls_options_of_mysql_are_in_the_url(
    driver: str, options: dict[str, Any], expected: str
) -> None:
    assert mysql(driver, OPTIONS=options).partition("?")[2] == expected


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"ssl": {"capath": "/etc/ssl"}}, "['ssl']['capath']"),
        ({"ssl": {"cipher": "AES"}}, "['ssl']['cipher']"),
        ({"ssl": ssl.create_default_context()}, "['ssl']: is an object (SSLContext)"),
        ({"ssl_key_password": "hunter2"}, "['ssl_key_password']"),
        ({"ssl_verify_cert": True}, "['ssl']: asks for a verified certificate"),
        ({"unix_sockets": "/x"}, "['unix_sockets']"),
    ],
)
def test_unsupported_options_of_mysql_are_refused(options: dict[str, Any], word: str) -> None:
    assert word in refused("mysql", "pymysql", OPTIONS=options)


def test_an_option_file_fills_missing_settings(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.cnf").write_text("[client]\nport=3310\n")
    file = tmp_path / "my.cnf"
    file.write_text(
        "!includedir more\n[mysqld]\nuser=wrong\n[client]\nuser = filed # who\n"
        "password='a#b\\tc'\nhost=\"from file\"\nssl_ca=/etc/ca.pem\nskip-auto-rehash\n"
        "[shop]\ndatabase=shop\nport=3311\n"
    )
    silent = {"NAME": "", "USER": "", "PASSWORD": "", "HOST": ""}
    options: dict[str, Any] = {"read_default_file": str(file)}
    tls = "sslmode=verify-ca&sslrootcert=%2Fetc%2Fca.pem"
    assert mysql(**silent, OPTIONS=options) == f"mysql://filed:a%23b%09c@from%20file:3310/?{tls}"
    found = mysql(**silent, OPTIONS={**options, "read_default_group": "shop"})
    assert found == f"mysql://filed:a%23b%09c@from%20file:3311/shop?{tls}"
    # What the settings say counts.
    assert mysql(OPTIONS=options) == f"mysql://u:p@db:3310/app?{tls}"


def test_pymysql_reads_an_option_file_differently(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nuser=client\n[shop]\npassword=a\\tb#c\n")
    options = {"read_default_file": str(file), "read_default_group": "shop"}
    found = mysql("pymysql", USER="", PASSWORD="", OPTIONS=options)
    assert found == "mysql://me:a%5Ctb%23c@db/app"


def test_an_unreadable_or_unsupported_option_file_is_refused(tmp_path: Path) -> None:
    missing = {"read_default_file": str(tmp_path / "none.cnf")}
    message = refused("mysql", OPTIONS=missing)
    assert "none.cnf, which cannot be read: No such file" in message
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nssl-cipher=AES\n")
    assert "ssl-cipher" in refused("mysql", OPTIONS={"read_default_file": file})


def test_option_files_that_include_each_other_are_read_once(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nuser=u\n!include my.cnf\n")
    assert option_file.read([str(file)], ["client"], must_exist=True) == {"user": "u"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/srv/app/db.sqlite3", "sqlite:///srv/app/db.sqlite3.locks"),
        (Path("/srv/a b/ü?#.db"), "sqlite:///srv/a%20b/%C3%BC%3F%23.db.locks"),
        ("file:/srv/x%20y.db?cache=private", "sqlite:///srv/x%20y.db.locks"),
        ("file:///srv/x.db", "sqlite:///srv/x.db.locks"),
        (":memory:", "memory:django-default"),
        ("file:memorydb_default?mode=memory&cache=shared",
         "memory:file%3Amemorydb_default%3Fmode%3Dmemory%26cache%3Dshared"),
    ],
)  # fmt: skip
def test_the_locks_of_sqlite_are_in_a_file_beside_the_database(name: Any, expected: str) -> None:
    assert url("sqlite", {"NAME": name}) == expected
    _core.check_url(expected)


def test_every_path_to_a_database_leads_to_the_same_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real.db").touch()
    (tmp_path / "link.db").symlink_to("real.db")
    monkeypatch.chdir(tmp_path)
    found = {url("sqlite", {"NAME": name}) for name in ("real.db", "link.db", tmp_path / "real.db")}
    assert found == {f"sqlite://{tmp_path}/real.db.locks"}


def test_another_engine_is_refused_and_the_supported_ones_named() -> None:
    message = refused("oracle", ENGINE="django.db.backends.oracle")
    assert "is django.db.backends.oracle, which cannot hold locks" in message
    assert "PostgreSQL, MySQL, MariaDB and SQLite" in message
    assert "DATABASE_LOCKS_URL" in message


def test_a_wrapped_back_end_is_recognised_by_its_vendor() -> None:
    entry = _entry(ENGINE="django.contrib.gis.db.backends.postgis")
    assert url("postgresql", entry) == "postgres://u:p@db/app"
