"""A short run of ``make torture`` with workers in Python, and one with legacy, whose faults it must find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import environment, tool
from support.process import legacy_python


def run(folder: Path, *args: str, **env: str) -> tuple[bool, str]:
    done = subprocess.run(
        [tool("torture"), "--folder", str(folder), *args],
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode == 0, done.stdout


def test_rust_and_python_keep_the_promises_under_torture(tmp_path: Path) -> None:
    good, output = run(
        tmp_path,
        *("--engine", "postgres", "--seconds", "13", "--seed", "21", "--only", "library"),
        DBLOCK_TORTURE_PYTHON=sys.executable,
    )
    assert good, output
    assert "in Rust and 2 in Python" in output


def test_torture_detects_the_faults_of_legacy(tmp_path: Path) -> None:
    # In so short a run it may be lucky.
    for seed in ("22", "32", "42"):
        caught, output = run(
            tmp_path,
            *("--engine", "mariadb", "--control-seconds", "8", "--seed", seed),
            *("--only", "legacy"),
            DBLOCK_OLD_PYTHON=legacy_python(),
        )
        if caught:
            break
    assert caught, output
    assert "control: legacy" in output
    assert os.listdir(tmp_path)
