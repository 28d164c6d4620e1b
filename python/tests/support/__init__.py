"""Test support: real servers, and child processes that can be frozen and killed."""

from .process import (
    ROOT,
    Child,
    Holder,
    LegacyHolder,
    Program,
    dblock,
    environment,
    holder,
    legacy_python,
    state_of,
    threads_of,
    tool,
)
from .rotating import Rotating
from .servers import Proxy, Server, Servers
from .sql import connect_and_migrate, django_database, sql
from .waiting import TIMEOUT, eventually, in_thread

__all__ = [
    "ROOT",
    "TIMEOUT",
    "Child",
    "Holder",
    "LegacyHolder",
    "Program",
    "Proxy",
    "Rotating",
    "Server",
    "Servers",
    "connect_and_migrate",
    "dblock",
    "django_database",
    "environment",
    "eventually",
    "holder",
    "in_thread",
    "legacy_python",
    "sql",
    "state_of",
    "threads_of",
    "tool",
]
