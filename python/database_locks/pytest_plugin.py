"""The fixture ``locks``, which pytest loads by an entry point, with and without Django."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import MemoryLocks


@pytest.fixture
def locks(request: pytest.FixtureRequest) -> Iterator[MemoryLocks]:
    """Locks in memory for one test, those of ``lock`` and ``locked`` included.

    Has ``locks.lose(name)``, ``locks.expire(name)``, ``locks.assert_locked(name)`` and
    ``locks.assert_not_locked(name)``. A test that leaves a lock held fails.
    """
    # Imported here, so that a test session without locks does not load the package.
    from .testing import memory_locks

    with memory_locks() as locks:
        yield locks
