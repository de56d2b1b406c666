"""What a model can be made from: one file per kind, a frozen dataclass; see `graph.recipe.Recipe`.

A recipe says what is made; `undo_jax.runner.make` makes it.
"""
