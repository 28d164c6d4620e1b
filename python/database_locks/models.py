"""The model of the table of locks."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils import timezone


class Lock(models.Model):
    """A lock, one row each. Read-only: the core writes the rows.

    The migrations create the table with the same statements as ``dblock init``. On SQLite this
    table stays empty, because the locks are in a file beside the database: use ``manage.py locks
    list``, the admin page or `database_locks.connect` rather than this model.
    """

    name = models.CharField(max_length=255, unique=True)
    locked_by = models.TextField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    token = models.BigIntegerField(default=0, editable=False)
    grant_id = models.CharField(max_length=32, null=True, blank=True, editable=False)
    granted_until = models.DateTimeField(null=True, blank=True, editable=False)
    acquired_at = models.DateTimeField(null=True, blank=True, editable=False)
    renewed_at = models.DateTimeField(null=True, blank=True, editable=False)
    waiting_until = models.DateTimeField(null=True, blank=True, editable=False)
    metadata = models.TextField(null=True, blank=True, editable=False)
    shared = models.BooleanField(default=False, editable=False)

    class Meta:
        app_label = "database_locks"
        permissions: ClassVar = [("force_release_lock", "Can release a lock by force")]

    def __str__(self) -> str:
        return self.name

    @property
    def active(self) -> bool:
        """Whether the lock is held, by this machine's clock: for display only."""
        return self.expires_at is not None and timezone.now() <= self.expires_at
