"""What a run writes down: its folder, events, metrics, console output and time ledger."""
