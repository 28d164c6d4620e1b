"""The fixture ``locks``; pytest finds it by itself, with and without Django."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .testing import MemoryLocks


@pytest.fixture
def locks(request: pytest.FixtureRequest) -> Iterator[MemoryLocks]:
    """Locks in memory for this test, all of ``lock`` and ``locked`` included.

    ``locks.lose(name)``, ``locks.expire(name)``, ``locks.assert_locked(name)`` and
    ``locks.assert_not_locked(name)``; a test that leaves a lock held fails.
    """
    # Here, so that a test session without locks imports nothing.
    from .testing import memory_locks

    with memory_locks() as locks:
        yield locks
