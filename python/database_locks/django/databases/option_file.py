"""The option files of MySQL's and MariaDB's clients, as far as locks need them."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence

#: Files that include each other end here.
_DEPTH = 8

_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "r": "\r", "\\": "\\", "s": " ", '"': '"', "'": "'"}


class Unreadable(Exception):
    """A file that must be there cannot be read; the message names it."""


def read(
    paths: Sequence[str], groups: Sequence[str], *, must_exist: bool, plain: bool = False
) -> dict[str, str]:
    """The options of these groups; of files and lines the later ones count.

    Names have hyphens, and no value where the file gives none is ``""``. ``plain``: as PyMySQL
    reads values, without escapes and comments behind them. Raises `Unreadable` for a file that
    ``must_exist`` and cannot be read.
    """
    found: dict[str, str] = {}
    reader = _Reader(groups, found, _plain_value if plain else _value)
    for path in paths:
        try:
            reader.file(path, _DEPTH)
        except OSError as error:
            if must_exist:
                raise Unreadable(f"{path} cannot be read: {error.strerror}") from None
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
                raise Unreadable(f"{path} cannot be read: {error.strerror}") from None


def _plain_value(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in ("'", '"'):
        return text[1:-1]
    return text


def _value(text: str) -> str:
    """Without its quotes, its comment and its escapes."""
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
    # A comment begins behind a blank: a password may hold the sign.
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
