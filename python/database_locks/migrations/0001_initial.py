"""The table of legacy (django-database-locks 0.5), so that its databases can migrate from here."""

from django.db import migrations, models

from database_locks.django.install import InstallTable


class Migration(migrations.Migration):
    initial = True

    # The operations retry statements, which is impossible within a transaction.
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
