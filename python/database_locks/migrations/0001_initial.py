"""The state of version 0.5, so that a database which has that goes on from here."""

from django.db import migrations, models

from database_locks._install import InstallTable


class Migration(migrations.Migration):
    initial = True

    # What is tried again must not stand in a transaction.
    atomic = False

    dependencies = []

    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    name="Lock",
                    fields=[
                        (
                            "id",
                            models.AutoField(
                                auto_created=True,
                                primary_key=True,
                                serialize=False,
                                verbose_name="ID",
                            ),
                        ),
                        ("name", models.CharField(max_length=255, unique=True)),
                        ("locked_by", models.TextField(blank=True, null=True)),
                        ("expires_at", models.DateTimeField(blank=True, null=True)),
                    ],
                ),
            ],
            database_operations=[InstallTable()],
        ),
    ]
