"""Self-contained HTML pages: their parts, charts, and the page of a prepared folder."""
