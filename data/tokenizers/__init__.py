"""Text to token ids and back: bytes, characters, and subwords, trained here or elsewhere."""
