"""What is said of a step that does not fit, or cannot be: flags, and values that would do."""

from dataclasses import replace
from pathlib import Path

import pytest
from fit_words import found

import undo_jax
from undo_jax.cli import main as cli
from undo_jax.fit import chips, step
from undo_jax.fit.advice import Names, advice, check
from undo_jax.fit.chips import GIB
from undo_jax.fit.step import Memory, Step
from undo_jax.runtime.mesh import AXES, make_mesh, parse_mesh

ROOT = Path(undo_jax.__file__).parent.parent
QUICKSTART = str(ROOT / "experiments" / "quickstart.py")
FLAGS = Names("--rows", None, "--remat")


class _Chips:
    """A mesh of chips that are not there."""

    def __init__(self, text):
        sizes = parse_mesh(text)
        self.shape = {axis: getattr(sizes, axis) for axis in AXES}
        self.axis_names = AXES
        self.size = sizes.sweep * sizes.data * sizes.fsdp * sizes.tensor


def _program(words, accumulation=1):
    made = found(words).steps[0]
    training = replace(made.spec.training, accumulation=accumulation)
    return replace(made, spec=replace(made.spec, training=training))


@pytest.mark.parametrize(
    ("place", "first", "last"),
    [
        ("v5e:4x4", "data=2,fsdp=8", "fsdp=4,tensor=4"),
        ("v5e:16x16", "data=16,fsdp=16", "fsdp=16,tensor=16"),
        ("v5p:2x4x4", "data=4,fsdp=8", "fsdp=8,tensor=4"),
        ("v6e:16x16", "data=16,fsdp=16", "fsdp=16,tensor=16"),
        ("v6e:4x8", "data=8,fsdp=4", "fsdp=4,tensor=8"),
        ("v5e:2x2", "data=2,fsdp=2", "fsdp=2,tensor=2"),
        ("h100:8", "data=2,fsdp=4", "fsdp=8"),
        ("h100:2", "data=2", "fsdp=2"),
        ("h100:1", "data=1", "data=1"),
    ],
)
def test_meshes_are_those_of_the_document(place, first, last):
    found = chips.find(place)
    assert step.mesh_text(step.suggestion(found)) == first
    assert step.mesh_text(step.most_sharded(found)) == last
    document = (ROOT / "docs" / "TPU_PODS.md").read_text().partition("## 2.")[0]
    if found.chips in (16, 32, 256) and place != "v6e:4x8":
        assert document.count(first) > 1
        assert last in document or place == "v5p:2x4x4"  # where the first one holds every size


@pytest.mark.parametrize(
    ("words", "place", "mesh", "said"),
    [
        ("--preset 9B", "v5e:4x4", "data=16", "--mesh data=2,fsdp=8"),
        ("--preset 9B", "v5e:4x4", "data=4,fsdp=4", "--mesh data=2,fsdp=8"),
        ("--preset 9B", "v5e:4x4", "data=2,fsdp=8", "--mesh fsdp=4,tensor=4"),
        ("--preset 9B", "v5e:4x4", "fsdp=4,tensor=4", None),
        ("--preset 9B", "v5e:16x16", "data=16,fsdp=16", "--mesh data=4,fsdp=64"),
        ("--preset 9B", "v5e:16x16", "data=4,fsdp=64", "--mesh fsdp=16,tensor=16"),
        ("--preset 2B", "v5e:16x16", "data=4,fsdp=64", None),  # 8 heads
        ("--preset 9B --teacher 2B", "v5e:16x16", "data=4,fsdp=64", None),
        ("--preset 9B", "v5p:2x4x4", "data=4,fsdp=8", "--mesh fsdp=8,tensor=4"),
        ("--preset 2B", "h100:8", "data=2,fsdp=4", "--mesh fsdp=8"),
    ],
)
def test_the_mesh_that_is_advised(words, place, mesh, said):
    """With fewer parameters a chip, and never all chips of TPUs along fsdp."""
    program, found = _program(words), chips.find(place)
    refused = Step(Memory(9 * GIB, 0, 0, 99 * GIB, 0), None)
    line = advice(program.names, program.spec, found, _Chips(mesh), refused)
    assert [part for part in line.split(" or ") if "--mesh" in part] == ([said] if said else [])


def test_advice_in_the_words_of_each_form():
    """4 of 8 rows a chip halve 10 GiB of temporaries: 5 + 5 of 15.75 fit."""
    refused, place = Step(Memory(5 * GIB, 0, 0, 12 * GIB, 0), None), chips.find("v5e:4x4")
    mesh = _Chips("data=2,fsdp=8")
    preset = _program("--preset 9B --rows 128")
    assert advice(preset.names, preset.spec, place, mesh, refused) == (
        "this step needs 17.00 GiB a chip and v5e:4x4 has 15.75 GiB, 1.25 GiB too little: try "
        "--remat full or --rows 64 or --mesh fsdp=4,tensor=4 or more chips (--topology v5e:4x8) or "
        "chips with more memory (v4, v5p, v6e)"
    )
    shipped = _program(f"{QUICKSTART} --distill.training.batch-size 128")
    line = advice(shipped.names, shipped.spec, place, mesh, refused)
    for change in ("--model.remat full", "--distill.training.accumulation 2",
                   "--distill.training.batch-size 64"):  # fmt: skip
        assert f"{change} or " in line
    by_hand = Names("batch_size", "accumulation", "remat", "my_graph.py")
    assert " accumulation=2 in my_graph.py or batch_size=64 in my_graph.py or " in advice(
        by_hand, shipped.spec, place, mesh, refused
    )


@pytest.mark.parametrize(
    ("words", "mesh", "accumulation", "said"),
    [
        ("--preset tiny --rows 20", "data=2,fsdp=4", 1,
         "--rows 20 does not divide into data×fsdp=8 shards: give 16 or 24"),
        ("--preset tiny --rows 3", "data=8", 1,
         "--rows 3 does not divide into data×fsdp=8 shards: give 8"),
        (f"{QUICKSTART} --distill.training.batch-size 40", "data=2,fsdp=4", 3,
         "--distill.training.batch-size 40 does not divide into data×fsdp=8 shards of 3 parts "
         "each: give 24 or 48"),
        (f"{QUICKSTART} --stage unlearn --unlearn.training.batch-size 2", "data=4,tensor=2", 1,
         "--unlearn.training.batch-size 2 does not divide into data×fsdp=4 shards: give 4"),
        ("--preset tiny --rows 16", "fsdp=16", 1,
         "--mesh fsdp=16: embedding has a dimension of 24, which the mesh axis tensor=1 × fsdp=16 "
         "does not divide: choose a smaller tensor or fsdp"),
    ],
)  # fmt: skip
def test_arithmetic_that_does_not_go_names_the_flag_and_the_value(words, mesh, accumulation, said):
    program = _program(words, accumulation)
    sizes = parse_mesh(mesh)
    grid = make_mesh(sizes) if sizes.fsdp < 16 else _Chips(mesh)
    with pytest.raises(ValueError) as error:
        check(program.spec, grid, program.names)
    assert str(error.value) == said


def test_sizes_out_of_reach_name_the_flag(capsys):
    words = "fit --preset tiny --topology v5e:2x2 --rows 1073741824 --length 2147483647"
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert "--rows=1073741824 rows of 2147483647 tokens: needs at least" in said
