"""Mixtures of experts: router, dispatch of tokens, grouped matrix products."""
