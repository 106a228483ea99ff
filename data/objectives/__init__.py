"""Objectives: from the tokens of a row to what a model is given and what it is to find."""
