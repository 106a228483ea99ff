"""Cleaning and selection of documents: steps that look at one, and duplicates among many."""
