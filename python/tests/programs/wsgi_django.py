"""A Django application for gunicorn: each request is a transaction that counts under a lock.

Runs with this package and with legacy (django-database-locks 0.5). ``LOCKS_URL`` is its database.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path

from database_locks import lock
from support.sql import django_database

url = os.environ["LOCKS_URL"]
if url.startswith("mysql:"):
    import pymysql

    # Django wants a mysqlclient of at least that version.
    pymysql.version_info = (2, 2, 1, "final", 0)
    pymysql.install_as_MySQLdb()
settings.configure(
    DATABASES={"default": django_database(url, ATOMIC_REQUESTS=True)},
    INSTALLED_APPS=["database_locks"],
    USE_TZ=True,
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="for tests",
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
)
django.setup()

# The master, before it forks.
call_command("migrate", verbosity=0)
with connection.cursor() as cursor:
    cursor.execute("CREATE TABLE counter (n integer)")
    cursor.execute("INSERT INTO counter VALUES (0)")
connection.close()


def count(request: HttpRequest) -> HttpResponse:
    how: dict[str, Any] = json.loads(request.GET.get("lock", "{}"))
    with lock("count", **how), connection.cursor() as cursor:
        cursor.execute("SELECT n FROM counter")
        (n,) = cursor.fetchone()
        time.sleep(0.002)
        cursor.execute("UPDATE counter SET n = %s", [n + 1])
    # As long as it takes to make a page of it. It commits after that.
    time.sleep(0.01)
    return HttpResponse(json.dumps({"pid": os.getpid()}))


urlpatterns = [path("count", count)]
application = get_wsgi_application()
