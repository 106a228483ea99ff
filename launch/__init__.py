"""The command line: what a person types, and what every ending means."""
