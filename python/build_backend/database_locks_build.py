"""The build back end: maturin, preceded by a check that Rust is installed.

Without the check maturin downloads a toolchain, or fails with a traceback.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import maturin

Settings = Mapping[str, Any] | None

_HOW = "install Rust (https://rustup.rs), or install a wheel for this platform instead"


def _required() -> str | None:
    """The least version of Rust: from the workspace in the sdist, or above this folder in a
    repository.
    """
    for folder in Path(__file__).resolve().parents[1:3]:
        manifest = folder / "Cargo.toml"
        if manifest.is_file():
            found = re.search(r'^rust-version = "([\d.]+)"', manifest.read_text("utf-8"), re.M)
            if found:
                return found[1]
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))


def _need_rust() -> None:
    """Exit with a message and without a traceback if Rust is missing or too old."""
    required = _required()
    wanted = f"Rust {required} or later" if required else "Rust"
    what = f"django-database-locks: building from source needs {wanted}"
    if shutil.which("cargo") is None or shutil.which("rustc") is None:
        raise SystemExit(f"{what}, and there is no cargo on PATH: {_HOW}.")
    done = subprocess.run(
        ["rustc", "--version"],  # noqa: S607 - the one that cargo runs
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.match(r"rustc (\d+\.\d+(?:\.\d+)?)", done.stdout)
    if found is None:
        raise SystemExit(f"{what}, and `rustc --version` fails: {done.stderr.strip()}")
    if required and _numbers(found[1]) < _numbers(required):
        raise SystemExit(f"{what}, and this is {found[1]}: run `rustup update`, or {_HOW}.")


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    _need_rust()
    return []


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    _need_rust()
    return []


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    _need_rust()
    return []


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    _need_rust()
    return maturin.prepare_metadata_for_build_wheel(metadata_directory, config_settings)


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    _need_rust()
    return maturin.prepare_metadata_for_build_editable(metadata_directory, config_settings)


def build_wheel(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    _need_rust()
    return maturin.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    _need_rust()
    return maturin.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    _need_rust()
    return maturin.build_sdist(sdist_directory, config_settings)
