"""Where text comes from: files of many formats, their records, and the standard library."""
