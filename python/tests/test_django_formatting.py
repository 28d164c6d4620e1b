"""Formatting in ``manage.py locks`` and the admin page."""

from __future__ import annotations

from typing import Any

import pytest

from database_locks import _core
from database_locks.cli import formatting


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0004, "0ms"),
        (0.25, "250ms"),
        (1.04, "1s"),
        (1.25, "1.2s"),
        (9.96, "10.0s"),
        (59.9, "59s"),
        (60, "1m"),
        (125, "2m 5s"),
        (3600, "1h"),
        (5400, "1h 30m"),
        (86_400, "1d"),
        (30 * 86_400 + 7200, "30d 2h"),
    ],
)
def test_durations_are_formatted(seconds: float, shown: str) -> None:
    assert formatting.human(seconds) == shown


def test_durations_are_parsed() -> None:
    read = {text: _core.parse_duration(text) for text in ("500ms", "1.5", " 2m ", "1d", "0")}
    assert read == {"500ms": 0.5, "1.5": 1.5, " 2m ": 120, "1d": 86_400, "0": 0}
    for bad in ("", "s", "-1s", "+1", "1e3", "1w", "nan", "inf", "1 2", "٣s"):
        with pytest.raises(ValueError, match="must be a number with ms"):
            _core.parse_duration(bad)


def test_the_purpose_is_meta_or_else_the_program() -> None:
    assert formatting.purpose({"program": "worker", "pid": 1}) == "worker"
    own = {"program": "dblock", "meta": {"ticket": "OPS-1", "command": "report.sh", "n": 3}}
    assert formatting.purpose(own) == "report.sh ticket=OPS-1 n=3"
    assert formatting.purpose("by hand") == "by hand"
    assert formatting.purpose(None) == ""


def test_control_characters_are_escaped() -> None:
    assert formatting.on_one_line("nightly report, jöb ✓") == "nightly report, jöb ✓"
    assert formatting.on_one_line("a\nb\tc\r") == "a\\nb\\tc\\r"
    assert formatting.on_one_line("\x1b[2J\x9b\x7f") == "\\u{1b}[2J\\u{9b}\\u{7f}"
    assert formatting.on_one_line("a\u202eb\u2028") == "a\\u{202e}b\\u{2028}"


def test_columns_are_as_wide_as_their_widest_cell_and_the_last_is_cut() -> None:
    lines = [("NAME", "X", "LAST"), ("jöb", "longer", "1"), ("仕事", "-", "a longer one")]
    assert formatting._aligned(lines) == (
        "NAME  X       LAST\njöb   longer  1\n仕事  -       a longer one"
    )
    assert (formatting.cut("abcdefg", 6), formatting.cut("仕事仕事", 6)) == ("abcde…", "仕事…")


def test_unknown_facts_of_a_lock_of_legacy_are_left_out() -> None:
    row: dict[str, Any] = dict.fromkeys(
        ["grant", "held_for", "free_in", "acquired_at", "renewed_at", "metadata"]
    )
    row |= {"name": "old", "state": "held", "holder": "host.1", "token": 0, "expires_at": None}
    assert dict(formatting.facts(row))["free in"] == "never"
    assert "held for" not in dict(formatting.facts(row))
