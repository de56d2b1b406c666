"""Devices and processes: meshes, sharding, collectives, memory, signals, files, locks."""
