"""`python -m undo_jax.cli` is `undo-jax`."""

from undo_jax.cli import main

main()
