"""Runs at the sizes that were published, family by family."""
