"""What a model can be made from: one file per kind, a frozen dataclass; `undo_jax.recipe.Recipe`.

A recipe says what is made; `undo_jax.runner` makes it.
"""
