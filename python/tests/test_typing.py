"""The types of the API in a user's project under `mypy --strict`."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent / "typed_project"


def mypy(file: Path, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    # From another folder: a user has no source of ours beside, and no configuration.
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary"]
    options = ["--config-file=", f"--cache-dir={tmp_path / 'cache'}", "--hide-error-context"]
    return subprocess.run(
        [*command, *options, str(file)], cwd=tmp_path, capture_output=True, text=True, check=False
    )


def test_mypy_accepts_a_users_project_and_keeps_its_signatures(tmp_path: Path) -> None:
    done = mypy(PROJECT / "right.py", tmp_path)
    assert (done.stdout, done.returncode) == ("", 0)


def test_mypy_finds_the_mistakes_in_a_users_project(tmp_path: Path) -> None:
    file = PROJECT / "wrong.py"
    wanted = {
        (number, code)
        for number, line in enumerate(file.read_text().splitlines(), 1)
        for code in re.findall(r"# \[([a-z-]+)\]$", line)
    }
    done = mypy(file, tmp_path)
    found = re.findall(r"wrong\.py:(\d+): error: .* \[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == wanted
