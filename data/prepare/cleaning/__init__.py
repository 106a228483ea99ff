"""Cleaning and selection: steps that read one document, and duplicates among all of them."""
