"""Hints of the core in the words of the face that shows them.

The core names the command ``dblock`` and the method `Locks.migrate`. In a Django project the same is
done by ``manage.py``.
"""

from __future__ import annotations

import re

_MAKES = "`dblock init` or `locks.migrate()`"

_FOR_DJANGO = (
    # SQLite: the file of the locks is not the one that `migrate` writes to.
    (re.compile("make its table with " + re.escape(_MAKES)), "make its table with `manage.py locks init`"),
    (re.compile(re.escape(_MAKES)), "`manage.py migrate database_locks` or `manage.py locks init`"),
    (re.compile(r"\bdblock (?=(?:init|list|show|release|prune|doctor)\b)"), "manage.py locks "),
)  # fmt: skip

_in_django = False


def use_django() -> None:
    """From now on hints are for a Django project."""
    global _in_django
    _in_django = True


def worded(text: str) -> str:
    """The text as this program's users read it."""
    if _in_django:
        for pattern, instead in _FOR_DJANGO:
            text = pattern.sub(instead, text)
    return text
