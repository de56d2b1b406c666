"""What a model can be made from: one file a kind, a frozen dataclass, see `undo_jax.recipe.Recipe`.

A recipe says what is made; `undo_jax.runner` makes it.
"""
