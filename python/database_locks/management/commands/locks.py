"""``manage.py locks``; Django looks for the command in this module."""

from database_locks.cli.command import Command

__all__ = ["Command"]
