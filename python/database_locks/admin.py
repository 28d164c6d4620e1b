"""The admin page: all locks with holder, age, remaining time and purpose.

It reads the locks through the core and not through the ORM: on SQLite, and with
``DATABASE_LOCKS_URL``, they are in another database than the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.utils import quote, unquote
from django.contrib.auth import get_permission_codename
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import DatabaseError, router, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from .cli import formatting, sharing
from .django import conf
from .exceptions import LockException
from .models import Lock

#: In the order in which the page shows them.
STATES = ("held", "resting", "expired", "paused", "free")
#: Sort orders of the age column: none, longest held first, shortest held first.
ORDERS = ("", "age", "-age")


if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Lock]
else:
    _ModelAdmin = admin.ModelAdmin


@admin.register(Lock)
class LockAdmin(_ModelAdmin):
    """Shows locks and releases them by force. Nothing is added, changed or deleted."""

    list_per_page = 100

    # Permissions

    def has_add_permission(self, request: HttpRequest) -> bool:
        """``False``: an acquire makes the row."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """``False``: only the holder changes its row."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """``False``: ``manage.py locks prune`` deletes rows."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """``view_lock``, ``change_lock`` or ``force_release_lock``."""
        return any(
            request.user.has_perm(f"{self.opts.app_label}.{permission}")
            for permission in (
                get_permission_codename("view", self.opts),
                get_permission_codename("change", self.opts),
                "force_release_lock",
            )
        )

    def has_module_permission(self, request: HttpRequest) -> bool:
        """The permission to view locks."""
        return self.has_view_permission(request)

    def has_release_permission(self, request: HttpRequest) -> bool:
        """``force_release_lock``."""
        return bool(request.user.has_perm(f"{self.opts.app_label}.force_release_lock"))

    def _require(self, allowed: bool) -> None:
        if not allowed:
            raise PermissionDenied

    # URLs

    def get_urls(self) -> list[URLPattern]:
        """The URLs of `ModelAdmin`, and that of the release page."""
        release = path(
            "<path:object_id>/release/",
            self.admin_site.admin_view(self.release_view),
            name=f"{self.opts.app_label}_{self.opts.model_name}_release",
        )
        return [release, *super().get_urls()]

    def _url(self, page: str, name: str | None = None) -> str:
        args = () if name is None else (quote(name),)
        where = f"admin:{self.opts.app_label}_{self.opts.model_name}_{page}"
        return reverse(where, args=args, current_app=self.admin_site.name)

    def get_object(self, request: HttpRequest, object_id: str, from_field: Any = None) -> Any:
        """The object of the history page: a lock is identified by its name."""
        return Lock(pk=object_id, name=object_id)

    # Pages

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """All locks, filtered and searched."""
        self._require(self.has_view_permission(request))
        wanted = request.GET.get("q", "").strip()
        state = request.GET.get("state", "")
        if state not in STATES:
            state = ""
        order = request.GET.get("o", "")
        if order not in ORDERS:
            order = ""
        try:
            # Within the range of the extension, which shows the last page for one that does not
            # exist.
            number = max(-1, min(int(request.GET.get("p", "1")), 2**31))
        except ValueError:
            number = 1
        try:
            found = conf.locks()._page(wanted, state or None, number, self.list_per_page, order)
        except LockException as error:
            return self._unreachable(request, error)
        page = Paginator(range(found["total"]), self.list_per_page).get_page(number)
        counted = None if found["free"] is None else sum(found[name] for name in STATES)
        filters = [("", _("All"), counted)]
        filters += [(name, _WORDS[name], found[name]) for name in STATES]
        return self._page(
            request,
            "list",
            {
                "title": _("Locks"),
                "rows": [self._row(row) for row in found["rows"]],
                "page": page,
                "pages": page.paginator.get_elided_page_range(page.number),
                "wanted": wanted,
                "state": state,
                "filters": [
                    (label, count, name == state, _query(q=wanted, state=name, o=order))
                    for name, label, count in filters
                ],
                "query": _query(q=wanted, state=state, o=order),
                "order": order,
                "sort_query": _query(
                    q=wanted,
                    state=state,
                    o=ORDERS[(ORDERS.index(order) + 1) % len(ORDERS)],
                ),
                "zone": timezone.get_current_timezone_name(),
                "may_release": self.has_release_permission(request),
                **(extra_context or {}),
            },
        )

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: Any = None,
    ) -> HttpResponse:
        """All facts about one lock."""
        self._require(object_id is not None and self.has_view_permission(request))
        name = unquote(object_id or "")
        try:
            row = _found(name, _slot(request))
        except LockException as error:
            return self._unreachable(request, error)
        if row is None:
            return self._unknown(request, name)
        return self._page(
            request,
            "detail",
            {
                "title": name if row.get("slot") is None else f"{name}, {row['slot']}",
                "row": self._row(row),
                "facts": _facts(row) + sharing.facts(row.get("shared_by", ())),
                "history_url": self._url("history", name),
                "may_release": self.has_release_permission(request),
                "shared_url": self._url("release", name) + _query(shared="1")
                if sharing.held(row.get("shared_by", ()))
                else None,
                **(extra_context or {}),
            },
        )

    def release_view(self, request: HttpRequest, object_id: str) -> HttpResponseBase:
        """Ask for confirmation (GET), release by force (POST)."""
        self._require(self.has_release_permission(request))
        name, slot = unquote(object_id), _slot(request)
        if "shared" in request.GET:
            return self._release_shared_view(request, name)
        try:
            row = _found(name, slot)
            if row is None:
                return self._unknown(request, name)
            seen = f"{row['token']}.{row['grant'] or ''}"
            # Another holder may have acquired it since the page was shown.
            moved = "seen" in request.POST and request.POST["seen"] != seen
            if request.method == "POST" and not moved:
                return self._release(request, name, slot)
        except LockException as error:
            return self._unreachable(request, error)
        return self._page(
            request,
            "release",
            {
                "title": _("Release by force?"),
                "row": self._row(row),
                "facts": _facts(row),
                "seen": seen,
                "moved": moved,
            },
        )

    def _release(self, request: HttpRequest, name: str, slot: int | None) -> HttpResponse:
        freed = conf.locks()._force_release(name, slot)
        shown = formatting.on_one_line(name)
        if slot is not None:
            return self._released_permit(request, name, slot, freed)
        if freed is None:
            messages.info(request, _("Lock “%(name)s” was free already.") % {"name": shown})
            return HttpResponseRedirect(self._url("changelist"))
        holder = formatting.on_one_line(freed[0] or str(_("a holder without a name")))
        if freed[2]:
            message = _("Its rest after %(holder)s was ended by force.") % {"holder": holder}
            success = _("Lock “%(name)s” is free: its rest after %(holder)s is ended.")
        else:
            message = _("Released by force: %(holder)s had held it.") % {"holder": holder}
            success = _("Lock “%(name)s” is released by force: %(holder)s had held it.")
        try:
            self._log(request, name, str(message))
        except DatabaseError as error:
            # The lock is released already. Some old character sets cannot store every name.
            messages.warning(request, _("The history has no entry of it: %s") % error)
        messages.success(request, success % {"name": shown, "holder": holder})
        return HttpResponseRedirect(self._url("changelist"))

    def _released_permit(
        self,
        request: HttpRequest,
        name: str,
        slot: int,
        freed: tuple[str | None, float | None, bool] | None,
    ) -> HttpResponse:
        words: dict[str, Any] = {"name": formatting.on_one_line(name), "slot": slot}
        if freed is None:
            messages.info(request, _("Permit %(slot)s of “%(name)s” was free already.") % words)
            return HttpResponseRedirect(self._url("changelist"))
        words["holder"] = formatting.on_one_line(freed[0] or str(_("a holder without a name")))
        try:
            message = _("Permit %(slot)s released by force: %(holder)s had held it.") % words
            self._log(request, name, str(message))
        except DatabaseError as error:
            # As for a lock: the permit is released already.
            messages.warning(request, _("The history has no entry of it: %s") % error)
        success = _("Permit %(slot)s of “%(name)s” is released by force: %(holder)s had held it.")
        messages.success(request, success % words)
        return HttpResponseRedirect(self._url("changelist"))

    def _release_shared_view(self, request: HttpRequest, name: str) -> HttpResponseBase:
        """`release_view` for all holders that share a lock."""
        try:
            row = _found(name, None)
            if row is None:
                return self._unknown(request, name)
            shared = sharing.held(row.get("shared_by", ()))
            seen = ",".join(sorted(it["grant"] or "" for it in shared))
            moved = "seen" in request.POST and request.POST["seen"] != seen
            if request.method == "POST" and not moved:
                return self._release_shared(request, name)
        except LockException as error:
            return self._unreachable(request, error)
        return self._page(
            request,
            "release_shared",
            {
                "title": _("Release by force?"),
                "row": self._row(row),
                "facts": _facts(row) + sharing.facts(shared),
                "holders": len(shared),
                "seen": seen,
                "moved": moved,
            },
        )

    def _release_shared(self, request: HttpRequest, name: str) -> HttpResponse:
        freed = conf.locks().force_release_shared(name)
        nameless = str(_("a holder without a name"))
        holders = ", ".join(formatting.on_one_line(holder or nameless) for holder, _age in freed)
        words = {"name": formatting.on_one_line(name), "holders": holders}
        if not freed:
            messages.info(request, _("No holder shares lock “%(name)s”.") % words)
            return HttpResponseRedirect(self._url("changelist"))
        try:
            self._log(
                request, name, str(_("Released by force: %(holders)s had shared it.") % words)
            )
        except DatabaseError as error:
            # As for a lock: it is released already.
            messages.warning(request, _("The history has no entry of it: %s") % error)
        success = _("Lock “%(name)s” is released by force: %(holders)s had shared it.")
        messages.success(request, success % words)
        return HttpResponseRedirect(self._url("changelist"))

    def _log(self, request: HttpRequest, name: str, message: str) -> None:
        # A failure must not break the transaction of the request.
        with transaction.atomic(using=router.db_for_write(LogEntry)):
            LogEntry.objects.create(
                user_id=request.user.pk,
                content_type_id=ContentType.objects.get_for_model(Lock).pk,
                object_id=name,
                object_repr=formatting.on_one_line(name)[:200],
                action_flag=CHANGE,
                change_message=message,
            )

    def _unknown(self, request: HttpRequest, name: str) -> HttpResponse:
        messages.warning(
            request, _("There is no lock “%(name)s”.") % {"name": formatting.on_one_line(name)}
        )
        return HttpResponseRedirect(self._url("changelist"))

    def _unreachable(self, request: HttpRequest, error: LockException) -> HttpResponse:
        return self._page(
            request,
            "unreachable",
            {"title": _("The locks cannot be read"), "message": str(error)},
            status=503,
        )

    def _page(
        self, request: HttpRequest, name: str, context: Mapping[str, Any], status: int = 200
    ) -> HttpResponse:
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            f"database_locks/admin/{name}.html",
            {
                **self.admin_site.each_context(request),
                "opts": self.opts,
                "list_url": self._url("changelist"),
                **context,
            },
            status=status,
        )

    def _row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The variables of one lock in the templates."""
        name, slot = row["name"], row.get("slot")
        where = "" if slot is None else _query(slot=str(slot))
        is_shared = bool(row.get("shared"))
        # The line of a semaphore has no page of its own.
        is_semaphore = slot is None and row.get("limit") is not None
        return {
            **row,
            "shown": formatting.on_one_line(name),
            "permit": formatting.counted(row) if is_semaphore or slot is not None else "",
            "word": _word(row),
            "holder": formatting.on_one_line(row["holder"] or ""),
            "since": _local(row["acquired_at"]),
            "age": "" if row["held_for"] is None else formatting.human(row["held_for"]),
            "left": formatting.free_in(row),
            "purpose": formatting.on_one_line(formatting.purpose(row["metadata"])),
            "url": "" if is_semaphore else self._url("change", name) + where,
            "release_url": self._url("release", name)
            + (_query(shared="1") if is_shared else where),
            "taken": row["state"] in _TAKEN,
        }


_WORDS = {
    "held": _("held"),
    "resting": _("resting"),
    "expired": _("expired"),
    "paused": _("paused"),
    "free": _("free"),
}
#: States in which a release by force frees the lock.
_TAKEN = ("held", "resting")


def _word(row: Mapping[str, Any]) -> Any:
    """The state in words."""
    readers = row.get("waits_for")
    if readers:
        return ngettext(
            "waiting for %(readers)s reader", "waiting for %(readers)s readers", readers
        ) % {"readers": readers}
    if row.get("shared") and row["state"] == "held":
        return _("shared")
    return _WORDS[row["state"]]


def _slot(request: HttpRequest) -> int | None:
    """The permit that the URL names; ``None``: the lock."""
    text = request.GET.get("slot", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else None


def _found(name: str, slot: int | None) -> Mapping[str, Any] | None:
    """The lock, or the permit with ``held`` and ``of``; ``None`` if there is none."""
    if slot is None:
        row = conf.locks().show(name)
        shared = [] if row is None else conf.locks()._known_shared(name)
        if row is None or not shared:
            return row
        return row | {"shared_by": shared}
    semaphore = conf.locks().show_semaphore(name)
    for permit in semaphore["permits"]:
        if permit["slot"] == slot:
            return {
                **permit,
                "held": semaphore["held"],
                "of": semaphore["of"],
                "limit": semaphore["limit"],
                "semaphore": formatting.permits(semaphore),
            }
    return None


def _local(text: str | None) -> str:
    """A point in time, to the second, in the time zone of the admin."""
    if not text:
        return ""
    # Python 3.10 reads only fractions of three or six digits, and no Z.
    whole = datetime.fromisoformat(formatting.time(text).replace("Z", "+00:00"))
    # The last day of year 9999, which another program may have written, overflows.
    with suppress(OverflowError):
        whole = timezone.localtime(whole)
    return f"{whole:%Y-%m-%d %H:%M:%S}"


def _local_with_zone(text: str | None) -> str:
    return f"{_local(text)} ({timezone.get_current_timezone_name()})" if text else ""


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All facts but the name, which is the title of the page."""
    facts = formatting.facts(row, _local_with_zone)[1:]
    if "semaphore" in row:
        facts.insert(1, ("permits", row["semaphore"]))
    return facts


def _query(**parts: str) -> str:
    return "?" + urlencode({key: value for key, value in parts.items() if value})
