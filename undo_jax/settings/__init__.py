"""Settings: what is retained and what is forgotten; see `undo_jax.setting.Setting`."""
