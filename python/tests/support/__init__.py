"""Test support: real servers, and child processes that can be frozen and killed."""

from .lab import Lab, Proxy, Server
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
from .sql import connect_and_migrate, django_database, sql
from .waiting import SOON, eventually, in_thread

__all__ = [
    "ROOT",
    "SOON",
    "Child",
    "Holder",
    "Lab",
    "OldHolder",
    "Program",
    "Proxy",
    "Rotating",
    "Server",
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
