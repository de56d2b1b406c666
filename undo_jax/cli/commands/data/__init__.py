"""Commands that prepare text: `undo-jax data ...`."""
