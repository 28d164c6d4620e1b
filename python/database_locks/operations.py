"""Operations for the migrations of a project."""

from .django.guards import GuardTable

__all__ = ["GuardTable"]
