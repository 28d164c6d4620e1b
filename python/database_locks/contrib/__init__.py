"""Integrations with other packages, which are imported only by their own modules."""
