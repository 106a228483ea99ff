"""A run or a dataset read into report objects, which pages and terminal views show."""
