"""Proteins: a new domain, built only from what `core` exports."""
