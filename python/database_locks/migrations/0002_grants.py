"""What version 0.5 did not have; all of it has defaults in the database, so that 0.5 can go on."""

from django.db import migrations, models

from database_locks._install import CompleteTable


class Migration(migrations.Migration):
    # What is tried again must not stand in a transaction.
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
            ],
            database_operations=[CompleteTable()],
        ),
    ]
