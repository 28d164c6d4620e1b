from django.db import migrations, models

from database_locks.operations import GuardTable


class Migration(migrations.Migration):
    initial = True

    dependencies = [("database_locks", "0003_permits")]

    # A table and its guard in one transaction, where the database has transactions for that.
    operations = [
        migrations.CreateModel(
            "Invoice",
            [
                (
                    "id",
                    models.AutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("amount", models.IntegerField()),
            ],
        ),
        GuardTable("Invoice", lock="ledger"),
    ]
