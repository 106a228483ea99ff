"""Hugging Face models: settings and tensors, to Tessera's and back."""
