"""Test support: real servers, and child processes that can be frozen and killed."""

from .process import (
    ROOT,
    Child,
    Holder,
    OldHolder,
    Program,
    dblock,
    environment,
    holder,
    old_python,
    state_of,
    threads_of,
    tool,
)
from .rotating import Rotating
from .servers import Proxy, Server, Servers
from .sql import connect_and_migrate, django_database, sql
from .waiting import SOON, eventually, in_thread

__all__ = [
    "ROOT",
    "SOON",
    "Child",
    "Holder",
    "OldHolder",
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
    "old_python",
    "sql",
    "state_of",
    "threads_of",
    "tool",
]
