"""``manage.py locks``: the subcommands, exit codes and JSON of ``dblock``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from .. import _arguments, _core
from .._wrap import BUSY, UNAVAILABLE
from ..django import conf
from ..django.install import PERMITS, TABLE
from ..exceptions import LockConfigError, LockException, LockTimeout
from . import formatting

#: Exit codes, the same as those of ``dblock``.
FOUND = UNKNOWN = 1
USAGE = 2

Handler = Callable[..., None]


class Command(BaseCommand):
    """Show and manage the locks of the project."""

    help = "Show and manage the locks of this project."
    # `doctor` has to run in a project whose checks fail.
    requires_system_checks: Any = []

    def add_arguments(self, parser: CommandParser) -> None:
        """The subcommands and their arguments."""
        words = parser.add_subparsers(
            dest="word", metavar="{list,show,release,limit,prune,doctor,init}", required=True
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

        added = word(
            "list",
            "List held, resting and expired locks with holder, age, remaining time and purpose.",
        )
        added.add_argument("-a", "--all", action="store_true", help="also list free locks")
        added = word(
            "show",
            "Show all facts about one lock or semaphore; exit code 1 if there is none of that name.",
        )
        added.add_argument("name", metavar="NAME", help="name of the lock or semaphore")
        added = word("release", "Release a lock without its holder.", json=False)
        added.add_argument("name", metavar="NAME", help="name of the lock")
        added.add_argument(
            "--force",
            action="store_true",
            help="required; make sure first that the holder is dead or stopped",
        )
        added.add_argument(
            "--slot",
            metavar="N",
            type=int,
            help="the permit of a semaphore, by its number, as show prints it",
        )
        added.add_argument(
            "--shared",
            action="store_true",
            help="all holders that share the lock, instead of one that has it alone",
        )
        added = word(
            "limit", "Set how many permits a semaphore has, whatever its callers say.", json=False
        )
        added.add_argument("name", metavar="NAME", help="name of the semaphore")
        added.add_argument(
            "limit",
            metavar="N",
            type=_limit,
            help="0 to 65536; 0 pauses it; none: each caller's own limit counts again",
        )
        added = word("prune", "Delete the rows of locks that have been free for long.", json=False)
        added.add_argument(
            "--older-than", metavar="DURATION", required=True, type=_duration, help="30d, 12h"
        )
        added.add_argument(
            "--include-legacy",
            "--include-unknown",
            action="store_true",
            dest="include_legacy",
            help="also delete free rows without a time of release, as version 0.5 writes them",
        )
        added = word(
            "doctor",
            "Report problems of the database and their fixes; exit code 1 for errors, 0 for warnings "
            "alone.",
        )
        added.add_argument("--strict", action="store_true", help="exit code 1 for warnings too")
        added.add_argument(
            "--ignore",
            metavar="ID",
            action="append",
            default=[],
            help="ignore the finding with this id, such as no-delete or standby-async; repeatable",
        )
        word(
            "init",
            "Create the table if migrate does not; a second run changes nothing.",
            json=False,
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run a subcommand. `CommandError` has the message, one line, and the exit code."""
        handlers: dict[str, Handler] = {
            "list": self.list,
            "show": self.show,
            "release": self.release,
            "limit": self.limit,
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
        self.say(
            formatting.rows_as_json(rows)
            if json
            else formatting.rows(rows, self.style, self._width())
        )

    def _width(self) -> int | None:
        return formatting.terminal_width() if self.stdout.isatty() else None

    def show(self, *, name: str, json: bool, **_: Any) -> None:
        row = conf.locks().show(name)
        semaphore: Any = conf.locks().show_semaphore(name)
        if semaphore["limit"] is None and not semaphore["permits"]:
            semaphore = None
        shared = conf.locks()._known_shared(name)
        if row is not None and shared:
            row = row | {"shared_by": shared}
        if row is None and semaphore is None:
            raise CommandError(
                f"there is no lock `{formatting.on_one_line(name)}`: it was never held, or its row was "
                "pruned; `manage.py locks list --all` names all locks",
                returncode=UNKNOWN,
            )
        if json:
            both = row is not None and semaphore is not None
            found = {**(row or {}), "semaphore": semaphore} if both else row or semaphore
            self.say(formatting.as_json(found))
            return
        if row is not None:
            self.say(formatting.row(row))
        if row is not None and shared:
            self.say(formatting.shared(shared))
        if semaphore is not None:
            self.say(formatting.semaphore(semaphore))

    def release(self, *, name: str, force: bool, slot: int | None, shared: bool, **_: Any) -> None:
        if not force:
            raise CommandError(
                f"lock `{formatting.on_one_line(name)}` is not released: its holder does that when it "
                "ends; give --force if the holder is dead",
                returncode=USAGE,
            )
        if shared:
            self._release_shared(name, slot)
            return
        freed = conf.locks()._force_release(name, slot)
        shown = formatting.on_one_line(name)
        what = f"lock `{shown}`" if slot is None else f"permit {slot} of `{shown}`"
        if freed is None:
            # Perhaps the name is misspelt.
            found = _is_known(name, slot)
            self.say(
                f"{what} was free already"
                if found
                else f"there is no {what}; `manage.py locks list --all` names all locks"
            )
            return
        holder, held_for, rested = freed
        who = formatting.on_one_line(holder or "a holder without a name")
        if rested:
            self.say(f"{what} is free: its rest after {who} is ended")
            return
        age = "" if held_for is None else f" for {formatting.human(held_for)}"
        self.say(f"{what} released by force: {who} had held it{age}")

    def _release_shared(self, name: str, slot: int | None) -> None:
        if slot is not None:
            message = "give --slot for a permit of a semaphore, or --shared for a lock, not both"
            raise CommandError(message, returncode=USAGE)
        shown, freed = formatting.on_one_line(name), conf.locks().force_release_shared(name)
        if not freed:
            self.say(f"no holder shares lock `{shown}`")
            return
        who = "one holder" if len(freed) == 1 else f"{len(freed)} holders"
        self.say(f"lock `{shown}` released by force: {who} had shared it")

    def limit(self, *, name: str, limit: int | None, **_: Any) -> None:
        before = conf.locks().show_semaphore(name)
        shown = formatting.on_one_line(name)
        is_new = before["limit"] is None and not before["permits"]
        if is_new and limit is None:
            self.say(f"there is no semaphore `{shown}`, so nothing was changed")
            return
        conf.locks().set_limit(name, limit)
        held = conf.locks().show_semaphore(name)["held"]
        if limit is None:
            self.say(f"semaphore `{shown}` has no limit in the database: each caller's counts")
            return
        what = "is paused" if limit == 0 else f"has the limit {limit}"
        if is_new:
            # Perhaps the name is misspelt.
            new = "a new setting: no permit of that name was acquired so far"
            self.say(f"semaphore `{shown}` {what}, {new}")
            return
        permits = "permit is" if held == 1 else "permits are"
        self.say(f"semaphore `{shown}` {what}; {held} {permits} held")

    def prune(self, *, older_than: float, include_legacy: bool, **_: Any) -> None:
        deleted = conf.locks().prune(older_than, unknown=include_legacy)
        what = "row" if deleted == 1 else "rows"
        self.say(f"{deleted} {what} deleted of locks unused for {formatting.human(older_than)}")

    def doctor(self, *, json: bool, strict: bool, ignore: Sequence[str], **_: Any) -> None:
        report = conf.locks().doctor()
        findings = [finding for finding in report["findings"] if finding["id"] not in ignore]
        report["findings"] = findings
        self.say(formatting.report_as_json(report) if json else formatting.report(report))
        errors = sum(finding["severity"] == "error" for finding in findings)
        counted = len(findings) if strict else errors
        if counted:
            what = "finding" if strict else "error"
            raise CommandError(f"{counted} {what}{'s' if counted > 1 else ''}", returncode=FOUND)

    def init(self, **_: Any) -> None:
        conf.locks().migrate()
        self.say(f"tables `{TABLE}` and `{PERMITS}` are ready")


def _is_known(name: str, slot: int | None) -> bool:
    """Whether the lock or the permit has a row."""
    if slot is None:
        return conf.locks().show(name) is not None
    permits = conf.locks().show_semaphore(name)["permits"]
    return any(permit["slot"] == slot for permit in permits)


def _line(error: LockException) -> str:
    return formatting.on_one_line(str(error))


def _limit(text: str) -> int | None:
    try:
        return _arguments.limit_of(None if text == "none" else int(text))
    except (LockConfigError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no limit: 0 (paused) to 65536, or none"
        ) from None


def _duration(text: str) -> float:
    try:
        return _core.parse_duration(text)
    except LockConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
