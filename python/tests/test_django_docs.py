"""The documentation names all parameters, settings, checks, signals and test helpers."""

from __future__ import annotations

import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.dispatch import Signal

from database_locks import lock, signals, testing
from database_locks.django import checks, conf
from support import environment

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "django.md").read_text(encoding="utf-8")


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
    text = (DOCS / "testing.md").read_text(encoding="utf-8")
    public = [name for name in vars(testing.MemoryLocks) if not name.startswith("_")]
    assert len(public) >= 6
    for name in set(public) - {"left_behind"}:
        assert f"`locks.{name}(" in text, name


def test_every_signal_is_explained() -> None:
    for name in ("lock_acquired", "lock_lost", "lock_released"):
        assert isinstance(getattr(signals, name), Signal)
        assert f"| `{name}` |" in GUIDE


@pytest.mark.skipif(
    "pytest_django" not in {m.name for m in pkgutil.iter_modules()}, reason="absent"
)
def test_the_examples_of_the_page_on_testing_run(tmp_path: Path) -> None:
    text = (DOCS / "testing.md").read_text(encoding="utf-8")
    names = ("report.py", "test_report.py", "conftest.py", "test_django.py")
    for name, block in zip(names, re.findall(r"```python\n(.*?)```", text, re.DOTALL), strict=True):
        (tmp_path / name).write_text(block)
    project = Path(__file__).with_name("django_project")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--ds=settings"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env=environment(DBLOCK_DJANGO_DB="sqlite-file", PYTHONPATH=str(project)),
    )  # fmt: skip
    assert "3 passed" in run.stdout, run.stdout + run.stderr
