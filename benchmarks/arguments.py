"""Values of flags that several benchmarks take, refused in one line."""

import argparse
from collections.abc import Callable
from typing import Any

from undo_jax.fit import chips


def checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """`read` as argparse takes it: what its ValueError says is what the user sees."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


@checked
def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text)):
        raise ValueError(f"{text}: give a whole number of at least 1")
    return int(text)


@checked
def known_topology(text: str) -> str:
    """A slice or GPUs of one node, by a name that `undo-jax fit` knows."""
    chips.find(text)
    return text
