"""`undo-jax xla-flags NAME`."""

from undo_jax.cli.flags import Name
from undo_jax.fit.flags import arguments

ORDER = 120


def xla_flags(name: Name) -> None:
    """Print a preset of XLA flags, for LIBTPU_INIT_ARGS.

    Args:
        name: overlap, sparse_cores or memory.
    """
    print(arguments(name))
