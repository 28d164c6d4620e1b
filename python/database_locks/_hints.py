"""Hints in error messages, worded for the program that shows them.

The core names the command ``dblock`` and the method `Locks.migrate`. A Django project does the same
with ``manage.py``.
"""

from __future__ import annotations

import re

_MAKES_TABLE = "`dblock init` or `locks.migrate()`"

_FOR_DJANGO = (
    # SQLite: the locks have a file of their own, which `manage.py migrate` does not write.
    (re.compile("make its table with " + re.escape(_MAKES_TABLE)), "make its table with `manage.py locks init`"),
    (re.compile(re.escape(_MAKES_TABLE)), "`manage.py migrate database_locks` or `manage.py locks init`"),
    (re.compile(r"\bdblock (?=(?:init|list|show|release|prune|doctor)\b)"), "manage.py locks "),
)  # fmt: skip

_in_django = False


def use_django() -> None:
    """Word all later hints for a Django project."""
    global _in_django
    _in_django = True


def worded(text: str) -> str:
    """The text with its hints worded for this program."""
    if _in_django:
        for pattern, instead in _FOR_DJANGO:
            text = pattern.sub(instead, text)
    return text
