"""Locks as people and programs read them, in the words and the form of ``dblock``.

What others wrote into the table is shown so that it neither drives a terminal nor begins a line.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ._wording import worded

Row = Mapping[str, Any]

#: Of the last column this much is shown even where the terminal is too narrow for it.
_LEAST_WIDTH = 12

_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
#: Zero-width characters, line breaks, and what turns the direction of writing around.
_UNSEEN = re.compile("[\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def seconds_of(text: str) -> float:
    """``500ms``, ``30s``, ``5m``, ``2h``, ``1d``, or bare seconds.

    `ValueError` says what is allowed.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h|d|)", text.strip(), re.ASCII)
    if match is None:
        raise ValueError(
            f"{text[:40]!r} must be a number with ms, s, m, h or d (500ms, 30s, 5m, 2h, 1d), or "
            "bare seconds"
        )
    return float(match[1]) * _UNITS[match[2]]


def human(seconds: float) -> str:
    """As people say it: ``30s``, ``2m 5s``, ``10m``."""
    whole = int(seconds)
    if whole < 1:
        return f"{int(seconds * 1000)}ms"
    if whole < 10 and seconds - whole >= 0.1:
        return f"{seconds:.1f}s"
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return _two(whole // 60, "m", whole % 60, "s")
    if whole < 86_400:
        return _two(whole // 3600, "h", whole % 3600 // 60, "m")
    return _two(whole // 86_400, "d", whole % 86_400 // 3600, "h")


def _two(first: int, unit: str, second: int, below: str) -> str:
    return f"{first}{unit} {second}{below}" if second else f"{first}{unit}"


def time(text: str | None) -> str:
    """A point in time without its fraction, UTC."""
    return "" if text is None else re.sub(r"\.\d+Z$", "Z", text)


def state(row: Row) -> str:
    """``held``, ``expired`` or ``free``."""
    return str(row["state"])


def free_in(row: Row) -> str:
    """When it can be had, unless it is renewed; empty where it is free."""
    if row["state"] == "held":
        return "never" if row["free_in"] is None else human(row["free_in"])
    return "now" if row["state"] == "expired" else ""


def purpose(metadata: Any) -> str:
    """What it was taken for: the caller's own words, else the program."""
    if metadata is None:
        return ""
    if not isinstance(metadata, Mapping):
        return plain(metadata)
    own = metadata.get("meta")
    if not isinstance(own, Mapping):
        return plain(metadata.get("program"))
    words = [plain(own["command"])] if "command" in own else []
    words += (f"{key}={plain(value)}" for key, value in own.items() if key != "command")
    return " ".join(words)


def facts(row: Row, time: Callable[[str | None], str] = time) -> list[tuple[str, str]]:
    """Everything about one lock: what, and what is known of it. ``time`` formats a point in time."""
    free = row["state"] == "free"
    found = [
        ("name", row["name"]),
        ("state", state(row)),
        ("last holder" if free else "holder", row["holder"]),
        ("token", str(row["token"])),
        ("grant", row["grant"]),
        ("last acquired" if free else "acquired", time(row["acquired_at"])),
        ("held for", "" if row["held_for"] is None else human(row["held_for"])),
        ("released" if free else "renewed", time(row["renewed_at"])),
        ("expires", time(row["expires_at"])),
        ("free in", "" if free else free_in(row)),
        *_said(row["metadata"]),
    ]
    return [(what, said) for what, said in found if said]


def _said(metadata: Any) -> list[tuple[str, str]]:
    if metadata is None:
        return []
    if not isinstance(metadata, Mapping):
        return [("metadata", plain(metadata))]
    found: list[tuple[str, str]] = []
    for key, value in metadata.items():
        if key == "meta" and isinstance(value, Mapping):
            found += ((own, plain(said)) for own, said in value.items())
        else:
            found.append((key, plain(value)))
    return found


def plain(value: Any) -> str:
    """A value of JSON, for people."""
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def on_one_line(text: str) -> str:
    """The text with everything escaped that is not seen as itself."""

    def shown(character: str) -> str:
        if character in _NAMED:
            return _NAMED[character]
        if _UNSEEN.match(character) or unicodedata.category(character) in ("Cc", "Cs"):
            return f"\\u{{{ord(character):x}}}"
        return character

    return "".join(map(shown, text))


# Tables


def terminal_width() -> int:
    """In columns."""
    return shutil.get_terminal_size().columns


_HEAD = ("NAME", "STATE", "HOLDER", "TOKEN", "SINCE", "HELD FOR", "FREE IN", "WHAT FOR")
_COLOURS = {"held": "SUCCESS", "expired": "WARNING", "free": "HTTP_NOT_MODIFIED"}


def rows(found: Sequence[Row], style: Any, columns: int | None) -> str:
    """A table, one line a lock, cut to the terminal's width where that is given.

    ``style`` is that of a command of Django's: plain where the output is no terminal.
    """
    if not found:
        return ""
    lines: list[tuple[str, ...]] = [_HEAD]
    for row in found:
        cells = (
            row["name"],
            state(row),
            row["holder"] or "",
            str(row["token"]),
            time(row["acquired_at"]),
            "" if row["held_for"] is None else human(row["held_for"]),
            free_in(row),
            purpose(row["metadata"]),
        )
        lines.append(tuple(on_one_line(cell) or "-" for cell in cells))
    colours = [getattr(style, _COLOURS[state(row)]) for row in found]
    return _aligned(lines, columns, [style.MIGRATE_HEADING, *colours])


def row(found: Row) -> str:
    """Everything about one lock, one line a fact."""
    return _aligned([(on_one_line(what), on_one_line(said)) for what, said in facts(found)])


def report(found: Row) -> str:
    """What was looked at, then what was found: one line each, and one that says what to do."""
    lines = [
        ("ok" if check["seen"] else "unseen", check["area"], check["message"])
        for check in found["checks"]
    ]
    for finding in found["findings"]:
        lines.append((finding["severity"], finding["id"], worded(finding["message"])))
        lines.append(("fix", finding["id"], worded(finding["fix"])))
    return _aligned([tuple(map(on_one_line, line)) for line in lines])


def _aligned(
    lines: Sequence[tuple[str, ...]],
    columns: int | None = None,
    colours: Sequence[Any] | None = None,
) -> str:
    """In columns. Colours are one a line: of the whole head, and of the second cell below."""
    if not lines:
        return ""
    last = len(lines[0]) - 1
    widths = [max(width(line[column]) for line in lines) for column in range(last + 1)]
    left = None
    if columns is not None:
        left = max(columns - sum(width + 2 for width in widths[:last]), _LEAST_WIDTH)
    shown = []
    for number, line in enumerate(lines):
        cells = []
        for column, cell in enumerate(line):
            if column == last:
                cells.append(cell if left is None else cut(cell, left))
                continue
            blanks = " " * (widths[column] - width(cell))
            if colours is not None and number > 0 and column == 1:
                cell = colours[number](cell)
            cells.append(cell + blanks)
        text = "  ".join(cells).rstrip()
        shown.append(colours[0](text) if colours is not None and number == 0 else text)
    return "\n".join(shown)


def width(text: str) -> int:
    """In columns of a terminal."""
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def cut(text: str, columns: int) -> str:
    """So much of it as fits."""
    if width(text) <= columns:
        return text
    shown = ""
    for character in text:
        if width(shown + character) + 1 > columns:
            break
        shown += character
    return shown + "…"


# JSON


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def as_json(found: Row) -> str:
    """One object."""
    return _json(found)


def rows_as_json(found: Sequence[Row]) -> str:
    """One array, one line a lock."""
    return _array(found)


def report_as_json(found: Row) -> str:
    """One object, one line a check or finding."""
    return f'{{"checks":{_array(found["checks"])},\n"findings":{_array(found["findings"])}}}'


def _array(found: Sequence[Row]) -> str:
    lines = ",\n".join(map(_json, found))
    return f"[\n{lines}\n]" if found else "[]"
