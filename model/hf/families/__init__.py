"""One file for each kind of Hugging Face model."""
