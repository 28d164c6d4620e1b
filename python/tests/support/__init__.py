"""What the tests stand on: real servers, child processes that can be frozen and killed."""

from .lab import Lab, Proxy, Server
from .process import Child, Holder, Program, dblock, holder, tool
from .sql import django_database, sql
from .waiting import eventually

__all__ = [
    "Child",
    "Holder",
    "Lab",
    "Program",
    "Proxy",
    "Server",
    "dblock",
    "django_database",
    "eventually",
    "holder",
    "sql",
    "tool",
]
