"""Attention: the modules, masks and positions, and the backends that compute it."""
