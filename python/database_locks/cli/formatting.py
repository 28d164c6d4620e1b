"""Locks as text and as JSON, in the format of ``dblock``.

Text that other programs wrote into the table is escaped, so that it cannot control a terminal or
look like a line of its own.
"""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import _core
from .._hints import worded

Row = Mapping[str, Any]

#: The least width of the last column, even if the terminal is too narrow.
_LEAST_WIDTH = 12

#: Zero-width characters, line separators, and marks that change the direction of writing.
_UNSEEN = re.compile("[\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def human(seconds: float) -> str:
    """A length of time: ``30s``, ``2m 5s``, ``10m``."""
    return _core.human(seconds)


def time(text: str | None) -> str:
    """A point in time without its fraction, UTC."""
    return "" if text is None else re.sub(r"\.\d+Z$", "Z", text)


def state(row: Row) -> str:
    """``held``, ``resting``, ``expired``, ``free``, or ``paused`` for a semaphore; ``shared`` for a
    shared holder, and ``waiting`` for an exclusive one that they keep out.
    """
    if row.get("waits_for"):
        return "waiting"
    is_shared = bool(row.get("shared")) and row["state"] == "held"
    return "shared" if is_shared else str(row["state"])


def free_in(row: Row) -> str:
    """When the lock is free unless it is renewed; empty if it is free."""
    if row["state"] in ("held", "resting"):
        return "never" if row["free_in"] is None else human(row["free_in"])
    return "now" if row["state"] == "expired" else ""


def permit(row: Row, found: Sequence[Row]) -> str:
    """Of a permit its number, and how many are held of how many: ``0 (2 of 3)``. ``found`` has the
    rows of its semaphore, or all rows.
    """
    if row.get("slot") is None and row.get("limit") is None:
        return ""
    same = [it for it in found if it.get("slot") is not None and it["name"] == row["name"]]
    held = sum(it["state"] == "held" for it in same)
    limits = [it["permits"] for it in same if it["permits"] is not None]
    return counted({**row, "held": held, "of": max(limits, default=None)})


def counted(row: Row) -> str:
    """Of a permit its number, and how many are held of how many: by ``limit``, the operator's, or
    else ``of``.
    """
    number = "-" if row["slot"] is None else str(row["slot"])
    if row["limit"] == 0:
        return f"{number} ({row['held']} held, paused)"
    if row["limit"] is not None:
        return f"{number} ({row['held']} of limit {row['limit']})"
    return f"{number} ({row['held']} of {row['of']})" if row["of"] else number


def permits(semaphore: Row) -> str:
    """How many permits are held of how many."""
    held, limit, of = semaphore["held"], semaphore["limit"], semaphore["of"]
    if limit == 0:
        return f"{held} held, paused by an operator (limit 0)"
    if limit is not None:
        return f"{held} of {limit} held (limit of an operator)"
    return f"{held} held" if of is None else f"{held} of {of} held"


def purpose(metadata: Any) -> str:
    """The purpose of a lock: the holder's ``meta``, else its program."""
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


def _waits_and_purpose(row: Row) -> str:
    """The purpose, and how many shared holders it waits for."""
    waits = row.get("waits_for")
    shown = purpose(row["metadata"])
    if not waits:
        return shown
    readers = f"waiting for {waits} reader{'' if waits == 1 else 's'}"
    return f"{readers}; {shown}" if shown else readers


def facts(row: Row, time: Callable[[str | None], str] = time) -> list[tuple[str, str]]:
    """All facts about one lock, as pairs of label and text. ``time`` formats a point in time."""
    free = row["state"] == "free"
    released = free or row["state"] == "resting"
    found = [
        ("name", row["name"]),
        ("permit", "" if row.get("slot") is None else str(row["slot"])),
        ("state", state(row)),
        ("last holder" if released else "holder", row["holder"]),
        ("token", str(row["token"])),
        ("grant", row["grant"]),
        ("last acquired" if released else "acquired", time(row["acquired_at"])),
        ("held for", "" if row["held_for"] is None else human(row["held_for"])),
        ("released" if released else "renewed", time(row["renewed_at"])),
        ("rests until" if released else "expires", time(row["expires_at"])),
        ("free in", "" if free else free_in(row)),
        *_metadata_facts(row["metadata"]),
    ]
    return [(what, shown) for what, shown in found if shown]


def _metadata_facts(metadata: Any) -> list[tuple[str, str]]:
    if metadata is None:
        return []
    if not isinstance(metadata, Mapping):
        return [("metadata", plain(metadata))]
    found: list[tuple[str, str]] = []
    for key, value in metadata.items():
        if key == "meta" and isinstance(value, Mapping):
            found += ((own, plain(shown)) for own, shown in value.items())
        else:
            found.append((key, plain(value)))
    return found


def plain(value: Any) -> str:
    """A JSON value; a string without quotes."""
    if value is None:
        return ""
    return value if isinstance(value, str) else _json(value)


def on_one_line(text: str) -> str:
    """The text with control characters and invisible characters escaped."""

    def shown(character: str) -> str:
        if character in _NAMED:
            return _NAMED[character]
        if _UNSEEN.match(character) or unicodedata.category(character) in ("Cc", "Cs"):
            return f"\\u{{{ord(character):x}}}"
        return character

    return "".join(map(shown, text))


# Tables


def terminal_width() -> int:
    """The width of the terminal in columns."""
    return shutil.get_terminal_size().columns


_HEAD = ("NAME", "STATE", "HOLDER", "TOKEN", "SINCE", "HELD FOR", "FREE IN", "WHAT FOR")
_COLOURS = {
    "held": "SUCCESS",
    "resting": "WARNING",
    "expired": "WARNING",
    "paused": "WARNING",
    "free": "HTTP_NOT_MODIFIED",
}


def rows(found: Sequence[Row], style: Any, columns: int | None) -> str:
    """A table with one line for each lock, cut to ``columns`` if that is given.

    ``style`` is that of a Django command, which has no colours if the output is no terminal.
    """
    if not found:
        return ""
    lines: list[tuple[str, ...]] = [_HEAD]
    for row in found:
        lines.append(_cells(row["name"], row))
    shown = ["PERMIT", *(permit(row, found) or "-" for row in found)]
    if any(cell != "-" for cell in shown[1:]):
        lines = [(*line[:2], cell, *line[2:]) for line, cell in zip(lines, shown, strict=True)]
    colours = [getattr(style, _COLOURS[row["state"]]) for row in found]
    return _aligned(lines, columns, [style.MIGRATE_HEADING, *colours])


def _cells(first: str, row: Row) -> tuple[str, ...]:
    cells = (
        first,
        state(row),
        row["holder"] or "",
        "" if row["token"] is None else str(row["token"]),
        time(row["acquired_at"]),
        "" if row["held_for"] is None else human(row["held_for"]),
        free_in(row),
        _waits_and_purpose(row),
    )
    return tuple(on_one_line(cell) or "-" for cell in cells)


def semaphore(found: Row) -> str:
    """How many permits are held, and a line for each permit that was granted once."""
    head = _aligned([("name", on_one_line(found["name"])), ("permits", permits(found))])
    if not found["permits"]:
        return head
    lines: list[tuple[str, ...]] = [("SLOT", *_HEAD[1:])]
    lines += (_cells(str(permit["slot"]), permit) for permit in found["permits"])
    return f"{head}\n{_aligned(lines)}"


def row(found: Row) -> str:
    """All facts about one lock, one on each line."""
    return _aligned([(on_one_line(what), on_one_line(shown)) for what, shown in facts(found)])


def shared(found: Sequence[Row]) -> str:
    """Who shares a lock, a line for each."""
    lines: list[tuple[str, ...]] = [("SHARED BY", *_HEAD[1:])]
    lines += (_cells(str(number), row) for number, row in enumerate(found, 1))
    return _aligned(lines)


def report(found: Row) -> str:
    """Checks, one on each line; then findings, each followed by a line with its fix."""
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
    """Lines aligned in columns. ``colours`` has one for each line: the head, and its second cell
    below.
    """
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
    """The width of a text in columns of a terminal."""
    return sum(
        0
        if unicodedata.combining(character)
        else 2
        if unicodedata.east_asian_width(character) in "WF"
        else 1
        for character in text
    )


def cut(text: str, columns: int) -> str:
    """The text, cut to ``columns``."""
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
    """One JSON object."""
    return _json(found)


def rows_as_json(found: Sequence[Row]) -> str:
    """One array, a lock on each line."""
    return _array(found)


def report_as_json(found: Row) -> str:
    """One object, a check or finding on each line."""
    return f'{{"checks":{_array(found["checks"])},\n"findings":{_array(found["findings"])}}}'


def _array(found: Sequence[Row]) -> str:
    lines = ",\n".join(map(_json, found))
    return f"[\n{lines}\n]" if found else "[]"
