"""What a run records: run folder, events, metrics, console output, time ledger."""
