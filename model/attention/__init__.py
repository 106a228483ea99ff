"""Attention: the modules, masks and positions, and the computations behind one table."""
