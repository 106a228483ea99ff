"""The Hugging Face model families: their settings and tensor names."""
