"""Text from a model: what goes on, what is filled in, what is answered."""
