"""Hugging Face models: their settings and tensors as Tessera's, and back."""
