"""Other tiles for the Triton kernels, tried one after another: a part of `gpu.py`.

For each kernel and width a search from the present constants: first the sizes of a tile, then with
the best of them warps and stages, and so on. A tile counts only if its results are those of the
present one, as nearly as rounding allows.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from gpu_cases import AttentionCase, HeadCase
from gpu_timing import milliseconds
from jax.experimental.pallas import triton as plgpu

from undo_jax.ops import attention_gpu, head_gpu
from undo_jax.ops.attention_gpu import Tile

LIMIT, GROUP = 300, 1000  # seconds of a case, cases of a process
SAME = 0.02  # relative in norm: two results in bf16
KERNELS = {"output": (), "gradient of q": (0,), "gradients of k and v": (1, 2)}  # of what
Constants = Mapping[str, int]
Changes = Sequence[Sequence[Constants]]  # groups of alternatives, one after another


class HeadTile(NamedTuple):
    """Constants of `head_gpu`, both kernels'."""

    rows: int = head_gpu.ROWS
    columns: int = head_gpu.COLUMNS
    depth: int = head_gpu.DEPTH
    part: int = head_gpu.PART
    warps: int = head_gpu.PARAMS.num_warps or 4
    stages: int = head_gpu.PARAMS.num_stages or 1


def grid(**choices: Sequence[int]) -> list[dict[str, int]]:
    """All combinations."""
    return [
        dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())
    ]


PIPELINES = grid(warps=(4, 8), stages=(1, 2, 3, 4))
ATTENTION = (grid(block=(64, 128), step=(32, 64, 128)), PIPELINES)
HEAD = (
    [*grid(rows=(64, 128), columns=(64, 128)), {"rows": 128, "columns": 256}],
    PIPELINES,
    grid(depth=(32, 64)),
    grid(part=(1024, 2048, 4096, 8192)),
)


def search(present: Any, changes: Changes, time: Callable[[Any], float | str]) -> dict[str, Any]:
    """Times of tiles, ms or why there is none; of each group the best goes on to the next."""
    tried = {present: time(present)}
    if isinstance(tried[present], str):
        raise ValueError(f"the present tile {present} fails: {tried[present]}")
    best = present
    for group in changes:
        for tile in [best._replace(**change) for change in group]:
            if tile not in tried:
                tried[tile] = time(tile)
        best = min((t for t in tried if not isinstance(tried[t], str)), key=lambda t: tried[t])
    return {
        "present": present._asdict(),
        "present_ms": tried[present],
        "best": best._asdict(),
        "best_ms": tried[best],
        "tried": [{**tile._asdict(), "found": outcome} for tile, outcome in tried.items()],
    }


def names(results: Mapping[str, Any], dry: bool) -> list[str]:
    widths = (32,) if dry else attention_gpu.TILES
    attention_names = [f"attention, H={width}; {kernel}" for width in widths for kernel in KERNELS]
    heads = [f"{loss}, D=320; both" for loss in ("kl_to_teacher", "cross_entropy")]
    return attention_names[:1] if dry else [*heads, *attention_names]


def measure(name: str, dry: bool) -> dict[str, Any]:
    """The search, and for what it is."""
    case_name, kernel = name.split("; ")
    kind, width = case_name.split(", ")
    size = int(width.partition("=")[2])
    if kind == "attention":
        return _attention(size, kernel, dry)
    return _head(HeadCase(kind, size, 2, 2048, 256_000))


def timer(build: Callable[[Any], Callable[[], Any]]) -> Callable[[Any], float | str]:
    """Of a tile: milliseconds, or why it cannot be used. `build` compiles its program.

    The first tile's result is what the others must give.
    """
    reference: list[Any] = []

    def time(tile: Any) -> float | str:
        jax.clear_caches()  # no trace with other constants is used again
        try:
            run = build(tile)
            results = jax.tree.leaves(run())
            reference.extend([] if reference else results)
            far = max(_distance(a, b) for a, b in zip(results, reference, strict=True))
            return milliseconds(run) if far < SAME else f"other results, by {far:.1e}"
        except Exception as error:  # Triton, XLA and CUDA raise different types
            return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]

    return time


def _distance(a: jax.Array, b: jax.Array) -> float:
    a, b = (jnp.ravel(x).astype(jnp.float32) for x in (a, b))
    far = float(jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-30))
    return far if far == far else float("inf")  # not a number


def _attention(width: int, kernel: str, dry: bool) -> dict[str, Any]:
    """A gradient is timed with the output before it, and without the other gradients."""
    toy = AttentionCase(width, 1, 70, 20, heads=2, kv_heads=1)
    case = toy if dry else AttentionCase(width, 4, 2048, 2048)
    inputs, output = case.inputs(), case.output(kernels=True)
    place, present = list(KERNELS).index(kernel), attention_gpu.TILES[width]

    def run(inputs):
        out, back = jax.vjp(lambda *x: output(*x, inputs["first"]), *(inputs[x] for x in "qkv"))
        gradients = back(inputs["weights"]) if KERNELS[kernel] else ()
        return [gradients[i] for i in KERNELS[kernel]] or out

    def build(tile: Tile) -> Callable[[], Any]:
        tiles = (*present[:place], tile, *present[place + 1 :])
        with mock.patch.dict(attention_gpu.TILES, {width: tiles}):
            program = jax.jit(lambda inputs: run(inputs)).lower(inputs).compile()
        return lambda: program(inputs)

    changes = [[{"block": 64}]] if dry else ATTENTION
    return search(present[place], changes, timer(build))


def _head(case: HeadCase) -> dict[str, Any]:
    """The loss and its gradients: all of both kernels, and the products of XLA's between them."""
    inputs = case.inputs()

    def build(tile: HeadTile) -> Callable[[], Any]:
        constants = {
            "ROWS": tile.rows,
            "COLUMNS": tile.columns,
            "DEPTH": tile.depth,
            "PART": tile.part,
            "PARAMS": plgpu.CompilerParams(num_warps=tile.warps, num_stages=tile.stages),
        }
        with mock.patch.multiple(head_gpu, **constants):
            program = case.program(kernels=True).lower(inputs).compile()
        return lambda: program(inputs)

    return search(HeadTile(), HEAD, timer(build))


def constants(results: Mapping[str, Any]) -> list[str]:
    """Lines for the source: those of `attention_gpu.TILES`, and of `head_gpu`."""
    lines = []
    best_tiles = {
        name: Tile(**result["best"])
        for name, result in results.items()
        if "best" in result and name.startswith("attention")
    }
    for width, present in attention_gpu.TILES.items():
        keys = [f"attention, H={width}; {kernel}" for kernel in KERNELS]
        if any(key in best_tiles for key in keys):
            tiles = [best_tiles.get(key, tile) for key, tile in zip(keys, present, strict=True)]
            lines.append(f"    {width}: ({', '.join(f'Tile{tuple(tile)}' for tile in tiles)}),")
    for name, result in results.items():
        if "best" in result and name.startswith("kl_to_teacher"):
            rows, columns, depth, part, warps, stages = HeadTile(**result["best"])
            lines += [
                f"ROWS, COLUMNS, DEPTH = {rows}, {columns}, {depth}",
                f"PART = {part}",
                f"PARAMS = plgpu.CompilerParams(num_warps={warps}, num_stages={stages})",
            ]
    return lines
