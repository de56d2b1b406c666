"""Attacks: one file each, with a function of its name that returns an `undo_jax.attack.Attack`."""
