"""Every setting of a run as a typed, frozen dataclass, and the named runs (presets)."""
