"""Where arrays live: the names of axes, the one table of rules, the mesh of devices."""
