"""Text to token ids and back: bytes, characters, and pieces learned here or elsewhere."""
