"""The table of permits, for semaphores. It has no model: Django never reads it."""

from django.db import migrations

from database_locks.django.install import InstallPermits


class Migration(migrations.Migration):
    # The operations retry statements, which is impossible within a transaction.
    atomic = False

    dependencies = [("database_locks", "0002_grants")]

    operations = [InstallPermits()]
