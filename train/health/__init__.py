"""The health of a run: divergence, rollback, watchdog, signals, replayed steps, stragglers."""
