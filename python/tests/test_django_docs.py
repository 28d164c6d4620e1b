"""The guide names what there is: parameters, settings, checks, commands."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from database_locks import checks, conf, lock, testing

GUIDE = (Path(__file__).parents[2] / "docs" / "django.md").read_text(encoding="utf-8")


def test_every_parameter_is_explained() -> None:
    named = re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE)
    parameters = list(inspect.signature(lock.__init__).parameters)[1:]
    assert [name for name in named if name in parameters] == parameters


def test_every_setting_is_explained() -> None:
    named = set(re.findall(r"^\| `(DATABASE_LOCKS_\w+)` \|", GUIDE, re.MULTILINE))
    assert named == set(conf.DEFAULTS)


def test_every_check_is_explained() -> None:
    named = set(re.findall(r"^\| `database_locks\.([EW]\d+)` \|", GUIDE, re.MULTILINE))
    assert named == set(re.findall(r"^([EW]\d+) ", checks.__doc__ or "", re.MULTILINE))
    source = inspect.getsource(checks)
    assert named == set(re.findall(r'_id\(\s*"([EW]\d+)"', source)) | set(
        re.findall(r'else "([EW]\d+)"', source)
    )


def test_every_helper_for_tests_is_explained() -> None:
    for name in ("lose", "expire", "assert_locked", "assert_not_locked", "held"):
        assert hasattr(testing.MemoryLocks, name)
        assert f"`locks.{name}(" in GUIDE
