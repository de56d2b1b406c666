"""Every file of undo_jax/settings/ keeps the contract of a setting, `undo_jax.setting.Setting`.

So does tests/own/letters.py, the guide's example. A new setting needs no edit here, if it is
small with the defaults of its fields; else a small instance of it goes into
tests/helpers/small_settings.py.
"""

import dataclasses
import importlib
import inspect
import json
import pkgutil
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import jax
import numpy as np
import pytest
from small_settings import SMALL

import undo_jax.settings
from undo_jax.evals.scoring import compare_with_oracle, make_scorer
from undo_jax.models.gemma2 import preset
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.setting import Example, Setting, check_metrics
from undo_jax.store.artifacts import to_json
from undo_jax.types import Packed

NAMES = [module.name for module in pkgutil.iter_modules(undo_jax.settings.__path__)]
EXAMPLE = Path(__file__).parents[1] / "own" / "letters.py"
STREAMS = ("pretrain", "oracle", "retain", "forget")
ROWS = 4


def _load_example():
    spec = spec_from_file_location(EXAMPLE.stem, EXAMPLE)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _class_in(name):
    """The one class of a file that is a setting."""
    is_example = name not in NAMES
    module = _load_example() if is_example else importlib.import_module(f"undo_jax.settings.{name}")
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Setting) and value is not Setting
    ]
    (setting,) = (value for value in classes if value.__module__ == module.__name__)
    return setting


@pytest.fixture(scope="module", params=[*NAMES, EXAMPLE.stem])
def setting(request, tmp_path_factory):
    kind = _class_in(request.param)
    make = SMALL.get(kind.__name__, lambda folder: kind())
    return make(tmp_path_factory.mktemp(request.param))


def _fields(batch):
    packed = batch if isinstance(batch, Packed) else Packed(batch)
    return {name: part for name, part in packed._asdict().items() if part is not None}


def test_settings_are_found():
    assert {"arithmetic", "language"} <= set(NAMES)


def test_is_a_frozen_dataclass_that_files_can_describe(setting):
    kind = type(setting)
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
    assert kind.__doc__ and hash(setting) == hash(dataclasses.replace(setting))
    assert json.loads(json.dumps(to_json(setting))) == to_json(setting)


def test_members_have_the_arguments_of_the_base_class(setting):
    for name, member in inspect.getmembers(Setting, inspect.isfunction):
        own = inspect.signature(getattr(type(setting), name))
        assert list(own.parameters) == list(inspect.signature(member).parameters), name


def test_metrics_are_consistent(setting):
    check_metrics(setting)
    headline = [setting.metrics[name] for name in setting.headline]
    assert all(metric.at == "evaluation" for metric in headline)
    labels = [metric.label for metric in setting.metrics.values()]
    assert len(set(labels)) == len(labels) and all(labels)


def test_streams_have_rows_of_the_stated_length_and_fields(setting):
    tokens = setting.get_tokenizer().vocab_size
    for name in STREAMS:
        length = setting.row_lengths.get(name, setting.row_length)
        fields = _fields(setting.stream(name, ROWS, 0)[1])
        assert {*fields} == {"tokens", *setting.batch_fields}
        assert {part.shape for part in fields.values()} == {(ROWS, length + 1)}
        assert fields["tokens"].dtype == np.int32
        assert 0 <= fields["tokens"].min() <= fields["tokens"].max() < tokens
        assert np.all(fields.get("weights", 1) >= 0) and np.any(fields.get("weights", 1))
    with pytest.raises(ValueError, match="^no stream 'nothing': choose one of "):
        setting.stream("nothing", ROWS, 0)


def test_a_batch_depends_on_the_seed_and_the_step_alone(setting):
    for name in STREAMS:
        stream = setting.stream(name, ROWS, 7)
        stream[0]
        batch, again = stream[2], setting.stream(name, ROWS, 7)[2]
        part, other = stream[2, 1:3], setting.stream(name, ROWS, 8)
        jax.tree.map(np.testing.assert_array_equal, batch, again)
        jax.tree.map(np.testing.assert_array_equal, part, jax.tree.map(lambda x: x[1:3], batch))
        few = [np.concatenate([_fields(s[i])["tokens"] for i in range(8)]) for s in (stream, other)]
        assert not np.array_equal(*few)


def test_the_oracle_sees_no_forget_rows(setting):
    rows = {
        name: {
            tuple(row.tolist())
            for step in range(64)
            for row in _fields(setting.stream(name, 8, 0)[step])["tokens"]
        }
        for name in ("oracle", "forget")
    }
    assert rows["forget"] and not rows["oracle"] & rows["forget"]


def test_scores_of_a_finished_model_are_those_that_metrics_name(setting):
    vocabulary = 8 * -(-setting.get_tokenizer().vocab_size // 8)
    lm = preset("2B", layers=1, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8,
                vocabulary=vocabulary, dtype="float32")  # fmt: skip
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    with jax.set_mesh(mesh):
        scorer = make_scorer(setting, setting.eval_data(), mesh)
        params = jax.jit(lm.init)(jax.random.key(0))
        first, again = scorer(lm, params), scorer(lm, params)
    assert first == again and {*first.lists} == {*setting.lists}
    names = {name for name, metric in setting.metrics.items() if metric.at != "comparison"}
    assert names <= {*first.scores} and all(map(np.isfinite, first.scores.values()))
    compared = compare_with_oracle(setting, first, first)
    assert {*compared} == {*setting.metrics} - names
    assert {*compare_with_oracle(setting, first, None)} <= {*compared}


def test_an_equal_student_has_recovered_and_a_much_worse_one_has_not(setting):
    sign = 1 if setting.metrics[setting.headline[0]].higher_is_better else -1
    assert setting.recovered(0.5, 0.5, 0.05)
    assert setting.recovered(0.5 + sign * 0.4, 0.5, 0.05)
    assert not setting.recovered(0.5 - sign * 0.4, 0.5, 0.05)


def test_examples_are_of_both_parts_or_none(setting):
    examples = setting.examples()
    assert all(isinstance(example, Example) and example.answer for example in examples)
    assert {example.part for example in examples} in (set(), {"retain", "forget"})
