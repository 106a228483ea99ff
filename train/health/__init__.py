"""Divergence, hangs, signals, replayed steps and stragglers."""
