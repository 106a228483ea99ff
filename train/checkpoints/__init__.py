"""Checkpoints: saved, restored, verified, mirrored to durable storage, and begun from."""
