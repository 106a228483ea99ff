"""Named runs: functions that return a RunConfig, by family, and the table of all."""
