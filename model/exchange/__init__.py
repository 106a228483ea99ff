"""Exchange of weights with Hugging Face: whose class a model is, and where each tensor lives."""
