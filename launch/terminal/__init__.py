"""Terminal views of report objects."""
