"""Text from a model: continued, with masks filled in, or answered by an encoder-decoder."""
