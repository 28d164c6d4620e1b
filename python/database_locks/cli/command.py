"""``manage.py locks``: the words, the exit codes and the JSON of ``dblock``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from database_locks import _show, conf
from database_locks._install import TABLE
from database_locks._wrap import BUSY, UNAVAILABLE
from database_locks.exceptions import (
    LockConfigError,
    LockException,
    LockTimeout,
)

#: What the command ends with, as ``dblock`` does.
FOUND = UNKNOWN = 1
USAGE = 2

Handler = Callable[..., None]


class Command(BaseCommand):
    """Look after the locks of the database that the settings name."""

    help = "Show who holds which lock, and look after them."
    # The doctor is for those whose checks fail.
    requires_system_checks: Any = []

    def add_arguments(self, parser: CommandParser) -> None:
        """The words of the command line."""
        words = parser.add_subparsers(
            dest="word", metavar="{list,show,release,prune,doctor,init}", required=True
        )

        def word(name: str, what: str, *, json: bool = True) -> CommandParser:
            added = words.add_parser(name, help=what, description=what)
            if json:
                added.add_argument(
                    "--json",
                    action="store_true",
                    help="times in RFC 3339 UTC, durations in seconds",
                )
            return added

        added = word("list", "Show who holds what, since when, for how long yet, and what for.")
        added.add_argument("-a", "--all", action="store_true", help="free locks too")
        added = word("show", "Show all about one lock; exit code 1 if there is no such lock.")
        added.add_argument("name", metavar="NAME", help="the lock")
        added = word("release", "Take a lock from its holder.", json=False)
        added.add_argument("name", metavar="NAME", help="the lock")
        added.add_argument(
            "--force",
            action="store_true",
            help="release it without its holder: make sure first that the holder is dead or stopped",
        )
        added = word("prune", "Delete the rows of locks that are long unused.", json=False)
        added.add_argument(
            "--older-than", metavar="DURATION", required=True, type=_duration, help="30d, 12h"
        )
        added.add_argument(
            "--include-unknown",
            action="store_true",
            help="free rows too that do not say since when: those of version 0.5",
        )
        added = word(
            "doctor",
            "Find what is wrong with the database, and say what to do; exit code 1 for errors, 0 "
            "for warnings alone.",
        )
        added.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
        added.add_argument(
            "--ignore",
            metavar="ID",
            action="append",
            default=[],
            help="leave this finding out, by its id: no-delete, standby-async, …; any number of times",
        )
        word(
            "init",
            "Make the table where migrate does not; a second run changes nothing.",
            json=False,
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Carry out one of the words; `CommandError` is one line and has the exit code."""
        handlers: dict[str, Handler] = {
            "list": self.list,
            "show": self.show,
            "release": self.release,
            "prune": self.prune,
            "doctor": self.doctor,
            "init": self.init,
        }
        try:
            handlers[options["word"]](**options)
        except LockConfigError as error:
            raise CommandError(_line(error), returncode=USAGE) from error
        except LockTimeout as error:
            raise CommandError(_line(error), returncode=BUSY) from error
        except LockException as error:
            raise CommandError(_line(error), returncode=UNAVAILABLE) from error

    def say(self, text: str) -> None:
        if text:
            self.stdout.write(text)

    def list(self, *, all: bool, json: bool, **_: Any) -> None:  # noqa: A002
        rows = conf.locks().list(free=all)
        self.say(_show.rows_as_json(rows) if json else _show.rows(rows, self.style, self._width()))

    def _width(self) -> int | None:
        return _show.terminal_width() if self.stdout.isatty() else None

    def show(self, *, name: str, json: bool, **_: Any) -> None:
        row = conf.locks().show(name)
        if row is None:
            raise CommandError(
                f"there is no lock `{_show.on_one_line(name)}`: it was never held, or its row was "
                "pruned; `manage.py locks list --all` names all locks",
                returncode=UNKNOWN,
            )
        self.say(_show.as_json(row) if json else _show.row(row))

    def release(self, *, name: str, force: bool, **_: Any) -> None:
        if not force:
            raise CommandError(
                f"lock `{_show.on_one_line(name)}` is not released: its holder does that when it "
                "ends; give --force if the holder is dead",
                returncode=USAGE,
            )
        freed = conf.locks().force_release(name)
        shown = _show.on_one_line(name)
        if freed is None:
            self.say(f"lock `{shown}` was free already")
            return
        holder, held_for = freed
        who = _show.on_one_line(holder or "a holder without a name")
        age = "" if held_for is None else f" for {_show.human(held_for)}"
        self.say(f"lock `{shown}` released by force: {who} had held it{age}")

    def prune(self, *, older_than: float, include_unknown: bool, **_: Any) -> None:
        deleted = conf.locks().prune(older_than, unknown=include_unknown)
        what = "row" if deleted == 1 else "rows"
        self.say(f"{deleted} {what} deleted of locks unused for {_show.human(older_than)}")

    def doctor(self, *, json: bool, strict: bool, ignore: Sequence[str], **_: Any) -> None:
        report = conf.locks().doctor()
        findings = [finding for finding in report["findings"] if finding["id"] not in ignore]
        report["findings"] = findings
        self.say(_show.report_as_json(report) if json else _show.report(report))
        errors = sum(finding["severity"] == "error" for finding in findings)
        counted = len(findings) if strict else errors
        if counted:
            what = "finding" if strict else "error"
            raise CommandError(f"{counted} {what}{'s' if counted > 1 else ''}", returncode=FOUND)

    def init(self, **_: Any) -> None:
        conf.locks().migrate()
        self.say(f"table `{TABLE}` is ready")


def _line(error: LockException) -> str:
    return _show.on_one_line(str(error))


def _duration(text: str) -> float:
    try:
        return _show.seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
