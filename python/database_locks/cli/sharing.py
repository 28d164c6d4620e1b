"""Shared holders on the admin page and in ``manage.py locks show``."""

from __future__ import annotations

from collections.abc import Sequence

from . import formatting
from .formatting import Row


def held(shared: Sequence[Row]) -> list[Row]:
    """Those that are alive."""
    return [row for row in shared if row["state"] == "held"]


def facts(shared: Sequence[Row]) -> list[tuple[str, str]]:
    """The living shared holders, as facts about their lock."""
    return [("shared by", _holder(row)) for row in held(shared)]


def _holder(row: Row) -> str:
    """``web-2 for 3s``."""
    who = row["holder"] or "a holder without a name"
    return who if row["held_for"] is None else f"{who} for {formatting.human(row['held_for'])}"
