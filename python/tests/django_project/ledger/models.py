from django.db import models


class Invoice(models.Model):
    amount = models.IntegerField()
