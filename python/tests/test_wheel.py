"""Builds from the source, installed into an environment without other packages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT, environment

PYTHON = ROOT / "python"
# Not optimised, into an existing folder: the build is faster, and its content is the same.
QUICK = {
    "MATURIN_PEP517_ARGS": "--profile dev",
    "CARGO_TARGET_DIR": os.environ.get("DBLOCK_WHEEL_TARGET", str(ROOT / "target/python/build")),
    "CARGO_PROFILE_DEV_DEBUG": "line-tables-only",
}
USE = """
import sys
import database_locks
assert not [name for name in sys.modules if name.partition(".")[0] == "django"]
locks = database_locks.connect("memory:")
with locks.lock("job") as held:
    assert held.token and not held.lost
print(database_locks.__version__)
"""


def run(*argv: str | Path, **env: str) -> str:
    # In another folder: Python looks for modules in the working directory first.
    words = [str(word) for word in argv]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(**env), cwd="/")
    assert done.returncode == 0, f"{argv}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def cargos_version() -> str:
    text = run(
        "cargo",
        "metadata",
        "--no-deps",
        "--format-version=1",
        "--manifest-path",
        PYTHON / "Cargo.toml",
    )
    [version] = {package["version"] for package in json.loads(text)["packages"]}
    return str(version)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """The Python of an environment with nothing in it but pip."""
    run(sys.executable, "-m", "venv", tmp_path / "clean")
    return tmp_path / "clean" / "bin" / "python"


def pip_installs(clean: Path, what: Path) -> None:
    run(clean, "-m", "pip", "install", "-q", "--disable-pip-version-check", what, **QUICK)
    assert run(clean, "-c", USE).strip() == cargos_version()
    assert "Django" not in run(clean, "-m", "pip", "list", "--disable-pip-version-check").split()


@pytest.mark.timeout(900)
def test_the_folder_installs_into_a_clean_environment(clean: Path) -> None:
    pip_installs(clean, PYTHON)


@pytest.mark.timeout(900)
def test_the_source_distribution_installs_into_a_clean_environment(
    clean: Path, tmp_path: Path
) -> None:
    maturin = Path(sys.executable).with_name("maturin")
    run(maturin, "sdist", "--manifest-path", PYTHON / "Cargo.toml", "--out", tmp_path / "dist")
    [sdist] = (tmp_path / "dist").iterdir()
    assert sdist.name == f"django_database_locks-{cargos_version()}.tar.gz"
    pip_installs(clean, sdist)


def test_a_build_without_rust_ends_in_a_clear_message(clean: Path) -> None:
    env = environment(PATH="/usr/bin:/bin")
    done = subprocess.run(
        [clean, "-m", "pip", "install", "-q", "--disable-pip-version-check", PYTHON],
        capture_output=True, text=True, env=env, cwd="/",
    )  # fmt: skip
    assert done.returncode == 1
    assert re.search(
        r"building from source needs Rust \d+\.\d+ or later, and there is no cargo on PATH: install Rust",
        done.stderr,
    ), done.stderr
    assert "Traceback" not in done.stderr


def test_a_rust_that_is_too_old_is_named(tmp_path: Path) -> None:
    for name, output in (("cargo", "cargo 1.70.0"), ("rustc", "rustc 1.70.0 (90c541806)")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{output}'\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", "import database_locks_build as b; b.build_wheel('.')"],
        capture_output=True, text=True, cwd=PYTHON,
        env=environment(PATH=f"{tmp_path}:/usr/bin:/bin", PYTHONPATH="build_backend"),
    )  # fmt: skip
    assert re.search(r"needs Rust \d+\.\d+ or later, and this is 1\.70\.0: run", done.stderr)
    assert "Traceback" not in done.stderr
