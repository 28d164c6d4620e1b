"""The columns that legacy (django-database-locks 0.5) does not have.

All have defaults in the database, so that legacy processes can go on writing.
"""

from django.db import migrations, models

from database_locks.django.install import CompleteTable


class Migration(migrations.Migration):
    # The operations retry statements, which is impossible within a transaction.
    atomic = False

    dependencies = [("database_locks", "0001_initial")]

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AlterModelOptions(
                    name="lock",
                    options={
                        "permissions": [
                            ("force_release_lock", "Can release a lock by force"),
                        ],
                    },
                ),
                migrations.AddField(
                    "lock", "token", models.BigIntegerField(default=0, editable=False)
                ),
                migrations.AddField(
                    "lock",
                    "grant_id",
                    models.CharField(blank=True, editable=False, max_length=32, null=True),
                ),
                *(
                    migrations.AddField(
                        "lock",
                        name,
                        models.DateTimeField(blank=True, editable=False, null=True),
                    )
                    for name in ("granted_until", "acquired_at", "renewed_at", "waiting_until")
                ),
                migrations.AddField(
                    "lock", "metadata", models.TextField(blank=True, editable=False, null=True)
                ),
                migrations.AddField(
                    "lock", "shared", models.BooleanField(default=False, editable=False)
                ),
            ],
            database_operations=[CompleteTable()],
        ),
    ]
