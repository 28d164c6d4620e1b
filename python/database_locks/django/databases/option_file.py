"""Reads option files (``my.cnf``) of the clients of MySQL and MariaDB."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence

#: The greatest depth of included files, which may include each other.
_DEPTH = 8

_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "r": "\r", "\\": "\\", "s": " ", '"': '"', "'": "'"}


class Unreadable(Exception):
    """A required file cannot be read; the message names it."""


def read(
    paths: Sequence[str], groups: Sequence[str], *, must_exist: bool, plain: bool = False
) -> dict[str, str]:
    """The options of these groups. Later files and lines take precedence.

    Names have hyphens. An option without a value is ``""``. ``plain``: values have no escapes and
    no comments, as PyMySQL reads them. Raises `Unreadable` for a file that ``must_exist`` and
    cannot be read.
    """
    found: dict[str, str] = {}
    reader = _Reader(groups, found, _plain_value if plain else _value)
    for path in paths:
        try:
            reader.file(path, _DEPTH)
        except OSError as error:
            if must_exist:
                raise Unreadable(f"{path}, which cannot be read: {error.strerror}") from None
    return found


class _Reader:
    def __init__(
        self, groups: Sequence[str], found: dict[str, str], value: Callable[[str], str]
    ) -> None:
        self.groups = groups
        self.found = found
        self.value = value

    def file(self, path: str, depth: int) -> None:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
        group = ""
        for line in map(str.strip, lines):
            if not line or line[0] in "#;":
                continue
            if line.startswith("!"):
                self.include(line, os.path.dirname(path), depth)
            elif line.startswith("[") and "]" in line:
                group = line[1 : line.index("]")].strip()
            elif group in self.groups:
                key, _, value = line.partition("=")
                name = key.split("#")[0].strip().lower().replace("_", "-")
                self.found[name.removeprefix("loose-")] = self.value(value.strip())

    def include(self, line: str, folder: str, depth: int) -> None:
        word, _, where = line.partition(" ")
        where = os.path.join(folder, where.strip())
        if depth == 0:
            return
        if word == "!include":
            paths = [where]
        elif word == "!includedir":
            paths = sorted(glob.glob(os.path.join(glob.escape(where), "*.cnf")))
        else:
            return
        for path in paths:
            try:
                self.file(path, depth - 1)
            except OSError as error:
                raise Unreadable(f"{path}, which cannot be read: {error.strerror}") from None


def _plain_value(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in ("'", '"'):
        return text[1:-1]
    return text


def _value(text: str) -> str:
    """The value without quotes, comment and escapes."""
    if text[:1] in ("'", '"'):
        quote, shown, escaped = text[0], "", False
        for character in text[1:]:
            if escaped:
                shown += _ESCAPES.get(character, "\\" + character)
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == quote:
                break
            else:
                shown += character
        return shown
    # A comment begins after a space: a password may contain the sign.
    for at, character in enumerate(text):
        if character == "#" and (at == 0 or text[at - 1].isspace()):
            text = text[:at].rstrip()
            break
    shown, escaped = "", False
    for character in text:
        if escaped:
            shown += _ESCAPES.get(character, "\\" + character)
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            shown += character
    return shown + ("\\" if escaped else "")
