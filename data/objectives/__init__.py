"""Training objectives: from the tokens of a row to inputs and targets."""
