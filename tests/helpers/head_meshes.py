"""Meshes of eight devices, and vocabularies, on which the head is tried."""

from itertools import product

import pytest

from undo_jax.runtime.mesh import MeshShape

MESHES = pytest.mark.parametrize(  # and a vocabulary: of the larger one, rows meet along fsdp
    ("shape", "vocabulary"),
    [
        (MeshShape(data=8), 16),
        (MeshShape(data=1, tensor=8), 16),
        *product(
            (
                MeshShape(data=1, fsdp=8),
                MeshShape(data=2, fsdp=2, tensor=2),
                MeshShape(data=1, fsdp=2, tensor=4),
            ),
            (16, 256),
        ),
    ],
    ids=str,
)
