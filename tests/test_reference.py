"""The paper's arithmetic at the paper's scale, field by field against the official code.

Values are those of its committed scripts (commit edbf111). Every deviation is listed, with why.
"""

import dataclasses
from functools import partial
from pathlib import Path

import pytest

import undo_jax
from undo_jax.report.tables import of_setting
from undo_jax.runner.load_experiment import load
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training

PAPER = Path(undo_jax.__file__).parent.parent / "experiments" / "paper"


def figure(name, **changes):
    changes = {"scale": "paper", "text": "english.txt", "tokenizer": "gemma.model", **changes}
    return dataclasses.replace(load(str(PAPER / f"{name}.py")), **changes)


def test_english_beside_arithmetic_is_a_row_of_its_own():
    """The experiments of one workdir are told apart by their names."""
    assert figure("methods").name == "methods-arithmetic_text-paper"
    assert figure("methods", text=None, tokenizer=None).name == "methods-arithmetic-paper"
    longer = figure("oracle_matching", steps=5)
    assert longer.name == "oracle_matching-arithmetic_text_steps5-paper"
    assert of_setting("arithmetic_text_steps5") == "arithmetic, text, steps 5"


def fields(value, path=""):
    """Dotted path -> value of all that is no dataclass, and the keywords of partials."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from fields(getattr(value, field.name), f"{path}.{field.name}".lstrip("."))
    elif isinstance(value, partial):
        yield f"{path}.name", value.func.__name__
        for name, keyword in value.keywords.items():
            yield f"{path}.{name}", keyword
    else:
        yield path, getattr(value, "__name__", value) if callable(value) else value


def training(**official):
    """What the official code trains with: its values by the names of `Training`."""
    optimizer = {
        "learning_rate": 0.0, "warmup": 0, "decay": "constant", "end": 0.1, "b1": 0.9, "b2": 0.999,
        "epsilon": 1e-8, "weight_decay": 0.0, "clip": 1.0, "first_moment": "float32",
    }  # fmt: skip
    whole = {f"optimizer.{name}": official.pop(name, value) for name, value in optimizer.items()}
    return {**whole, **official}


def differences(ours, official):
    """(Path, official value, ours) of all that differs; both must have the same fields."""
    found = dict(fields(ours))
    assert found.keys() == official.keys()
    return {(path, value, found[path]) for path, value in official.items() if found[path] != value}


MODEL = {  # gemma-2-2b's configuration with the official sizes of 0.3B; transformers' defaults
    "layers": 14, "width": 768, "feed_forward": 3072, "heads": 8, "kv_heads": 4, "head_width": 128,
    "vocabulary": 256_000, "final_softcap": 30.0, "attention_softcap": 50.0, "window": 4096,
    "attention_scale": 256**-0.5, "rope_theta": 10_000.0, "norm_epsilon": 1e-6, "init_stddev": 0.02,
}  # fmt: skip


def test_the_model_is_the_official_one():
    known = dict(fields(figure("alpha").model("base").lm))
    assert {name: known[name] for name in MODEL} == MODEL
    assert known["document_start"] is None  # attention crosses documents, as there


@pytest.mark.parametrize(
    ("of", "official", "deviations"),
    [
        (
            lambda: figure("alpha").model("base").training,
            training(steps=1000, batch_size=360, eval_every=100, accumulation=24,
                     learning_rate=4e-4, warmup=50),
            {("accumulation", 24, 3)},  # 4 shards of 30 rows; parts do not change the gradient
        ),
        (
            lambda: figure("alpha").model("oracle").training,
            training(steps=1000, batch_size=360, eval_every=100, accumulation=24,
                     learning_rate=4e-4, warmup=50),
            {("accumulation", 24, 3)},
        ),
        (
            lambda: figure("alpha").model("unlearn-only").training,
            training(steps=10, batch_size=40, eval_every=1, accumulation=1, learning_rate=9e-5),
            set(),
        ),
        (
            lambda: _distilled("alpha", "α=0.6").training,
            training(steps=1000, batch_size=360, eval_every=20, accumulation=24,
                     learning_rate=7e-4, warmup=50, decay="cosine"),
            {("accumulation", 24, 3)},
        ),
        (
            lambda: _distilled("alpha", "Unlearn-and-Distill").training,
            training(steps=1000, batch_size=360, eval_every=50, accumulation=24,
                     learning_rate=7e-4, warmup=50, decay="cosine"),
            {("accumulation", 24, 3)},
        ),
        (
            lambda: _distilled("oracle_matching", "Student (Reference)").training,
            training(steps=1000, batch_size=360, eval_every=50, accumulation=24,
                     learning_rate=7e-4, warmup=50, decay="cosine"),
            {("accumulation", 24, 3)},
        ),
        (
            lambda: _distilled("oracle_matching", "base, distilled").training,
            training(steps=2000, batch_size=360, eval_every=50, accumulation=24,
                     learning_rate=1e-4, warmup=50),
            {("accumulation", 24, 3)},
        ),
        (
            lambda: _distilled("methods", "GradDiff").training,
            training(steps=10, batch_size=40, eval_every=1, accumulation=1, learning_rate=8e-6),
            set(),  # 20 rows twice there
        ),
        (
            lambda: _distilled("methods", "RMU").training,
            training(steps=500, batch_size=40, eval_every=10, accumulation=1, learning_rate=8e-6),
            set(),
        ),
        (
            lambda: figure("alpha").experiment().attacks[0].training,
            training(steps=500, batch_size=15, eval_every=5, accumulation=1, learning_rate=1.0,
                     warmup=1),
            {("batch_size", 15, 16)},  # an even number of devices cannot divide 15
        ),
    ],
    ids=["base", "oracle", "maxent", "undo", "unlearn-and-distill", "oracle matching",
         "base distilled", "graddiff", "rmu", "relearning"],
)  # fmt: skip
def test_trainings_are_the_official_ones_but_for_these(of, official, deviations):
    ours = of()
    assert isinstance(ours, Training) and isinstance(ours.optimizer, AdamW)
    assert differences(ours, official) == deviations


def _distilled(name, model):
    return figure(name).experiment().models[model]


def test_methods_have_the_official_weights_but_for_these():
    models = figure("methods").experiment().models
    found = {
        name: dict(fields(models[name].loss, "loss")) for name in ("GradDiff", "MaxEnt", "RMU")
    }
    assert found["GradDiff"] == {"loss.name": "graddiff", "loss.retain_weight": 15.0}
    assert found["MaxEnt"] == {"loss.name": "maxent", "loss.retain_weight": 1.0}
    # RMU's retain term is off there, though its weight, 200, is in its setup; here it is on
    assert found["RMU"] == {"loss.name": "rmu", "loss.read_layer": 11, "loss.coefficient": 6.0}
    # layer 11 is named there, too, but has no gradient; here it does not train
    assert models["RMU"].trains.parts == ((r"mlp/down$", (5, 6, 7, 8, 9, 10)),)


def test_grids_rules_and_seeds_are_the_official_ones_but_for_these():
    graph = figure("alpha").experiment()
    assert graph.seeds == (111, 222, 333, 444, 555)
    alphas = [
        m.student.alpha for n, m in graph.models.items() if n.startswith("α") and "β" not in n
    ]
    assert alphas == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    undo = graph.models["α=0.6"]
    assert undo.stop_early and undo.tolerance == 0.05 and undo.stream == "pretrain"
    assert not graph.models["Unlearn-and-Distill"].stop_early
    assert {graph.models[n].seed for n in ("base", "oracle", "unlearn-only")} == {42}
    assert graph.models["α=0.6"].seed is None  # the students alone vary
    rates = (1e-3, 7e-4, 4e-4, 1e-4, 7e-5, 5e-5, 1e-5, 7e-6, 4e-6, 1e-6)
    # its forget-only attack is on + and − by mistake; here it is on × and ÷
    assert [(a.name, a.stream, a.learning_rates) for a in graph.attacks] == [
        ("forget", "forget", rates), ("mixed", "pretrain", rates)
    ]  # fmt: skip
    # deviation: an attack counts while the model keeps 90 % of its retain score (no bound there)
    assert {attack.min_retain for attack in graph.attacks} == {0.9}


def test_the_data_are_the_official_ones_but_for_these():
    setting = figure("alpha").experiment().setting
    assert setting.row_length == 256 and setting.text_share == 0.75
    assert (setting.grammar.largest_term, setting.grammar.largest_factor) == (50, 20)
    assert setting.forms == ("equation", "word_problem") and setting.problems == 1_000_000
    assert setting.questions == 100
    # deviations: whole quotients (floats there), a tenth of the facts held out and examined (none
    # is there), and a sequence is a problem, which no loss of this graph asks
    assert setting.grammar.division_answers == "integer" and setting.grammar.held_out == 0.1
    assert setting.examine == "held_out_facts" and setting.segments
