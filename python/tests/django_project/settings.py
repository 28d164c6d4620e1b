"""Settings for tests: the database is chosen by the environment.

``DBLOCK_DJANGO_DB``
    ``sqlite-file`` (the default), ``sqlite-memory``, ``postgres-psycopg``, ``postgres-psycopg2``,
    ``mariadb-mysqlclient``, ``mariadb-pymysql``, ``mysql-mysqlclient`` or ``mysql-pymysql``.
``DBLOCK_LAB_POSTGRES``, ``DBLOCK_LAB_MARIADB``, ``DBLOCK_LAB_MYSQL``
    The URL of the server, with the rights of its superuser.
``DBLOCK_DJANGO_NAME``
    The database, or the file; ``DBLOCK_DJANGO_AUTO_FIELD``: ``AutoField`` or ``BigAutoField``.
"""

import atexit
import importlib.abc
import os
import shutil
import sys
import tempfile
from urllib.parse import parse_qs, unquote, urlsplit

KIND = os.environ.get("DBLOCK_DJANGO_DB", "sqlite-file")
NAME = os.environ.get("DBLOCK_DJANGO_NAME", "")


class _Without(importlib.abc.MetaPathFinder):
    """Django prefers psycopg 3 where both are installed."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "psycopg":
            raise ModuleNotFoundError("left out", name=fullname)
        return None


def _server(variable: str, engine: str) -> dict[str, object]:
    url = urlsplit(os.environ[variable])
    options = {key: values[0] for key, values in parse_qs(url.query).items()}
    return {
        "ENGINE": engine,
        "NAME": NAME or url.path[1:],
        "USER": unquote(url.username or ""),
        "PASSWORD": unquote(url.password or ""),
        "HOST": options.get("host") or options.get("socket") or unquote(url.hostname or ""),
        "PORT": str(url.port or options.get("port") or ""),
    }


if KIND == "sqlite-file":
    # Of each process its own, and a test database in a file as well.
    if NAME:
        FILE = NAME
    else:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        FILE = os.path.join(folder, "db.sqlite3")
    database = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": FILE,
        "TEST": {"NAME": f"{FILE}-test"},
    }
elif KIND == "sqlite-memory":
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
elif KIND.startswith("postgres-"):
    if KIND == "postgres-psycopg2":
        sys.meta_path.insert(0, _Without())
    database = _server("DBLOCK_LAB_POSTGRES", "django.db.backends.postgresql")
elif KIND.startswith(("mariadb-", "mysql-")):
    server, _, driver = KIND.partition("-")
    if driver == "pymysql":
        import pymysql

        # Django asks for a version of mysqlclient.
        pymysql.version_info = (2, 2, 1, "final", 0)
        pymysql.install_as_MySQLdb()
    database = _server(f"DBLOCK_LAB_{server.upper()}", "django.db.backends.mysql")
    # As of a server that is set up today.
    database["TEST"] = {"CHARSET": "utf8mb4"}
else:
    raise ValueError(f"DBLOCK_DJANGO_DB={KIND}")

DATABASES = {"default": database}
DEFAULT_AUTO_FIELD = "django.db.models." + os.environ.get("DBLOCK_DJANGO_AUTO_FIELD", "AutoField")
USE_TZ = True
SECRET_KEY = "for tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
STATIC_URL = "/static/"
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "database_locks",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
