import gc
import itertools
import json
import weakref
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from undo_jax import losses
from undo_jax.evals.generate import generate
from undo_jax.logs.log import open_log
from undo_jax.logs.sink import Target
from undo_jax.models.gemma2 import preset
from undo_jax.runtime import device_memory
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.sinks.jsonl import jsonl
from undo_jax.training import loop, optim, train_step
from undo_jax.training import meter as meters
from undo_jax.training.loop import train_together
from undo_jax.training.population import Evaluator, Population, Trial, TrialInputs, deal
from undo_jax.training.programs import TrainSpec, over_slots

LM = preset("tiny", layers=1, width=16, feed_forward=16, head_width=8, init_stddev=0.25)
INIT = jax.jit(LM.init)
STEPS, BATCH, TRIALS = 12, 8, 5
RATES = (0.01, 0.02, 0.03, 0.01, 0.02)
STOPS = {1: 4, 3: 8}  # trial -> the step it stops at; the others run to the end


def _spec(steps=STEPS):
    return TrainSpec(
        lm=LM,
        loss=losses.distillation,
        training=train_step.Training(
            steps, BATCH, optim.AdamW(warmup=3, decay="cosine", epsilon=1e-3), eval_every=4
        ),
        streams=("train",),
        refs={"teacher": LM},
        row_length=5,
    )


def _cross_entropy(lm, params, eval_data):
    return {"ce": losses.cross_entropy(lm, params, train_step.rows(eval_data))}


def _stop_at(step):
    """A rule that says stop at its evaluation of `step`: they come every 4 steps from 0 on."""
    steps = itertools.count(0, 4)
    return lambda scores: next(steps) == step


def _tokens(seed, steps=STEPS):
    rng = np.random.default_rng(seed)
    return rng.integers(0, LM.vocabulary, (steps, BATCH, 6), dtype=np.int32)


def _never(scores):
    return False


def _trials(stops=(_never,) * TRIALS):
    """Five models; two inputs, each with its own rows and teacher."""
    inputs = [
        TrialInputs(
            {"train": _tokens(seed)}, {"teacher": (LM, partial(INIT, jax.random.key(50 + seed)))}
        )
        for seed in (0, 1)
    ]
    return [
        Trial(
            str(i),
            partial(INIT, jax.random.key(i)),
            jax.random.key(100 + i),
            RATES[i],
            inputs[i % 2],
            ends,
        )
        for i, ends in enumerate(stops)
    ]


def _fit(spec, trials, folder, shape, evaluate=_cross_entropy):
    targets = []
    for i in range(len(trials)):
        path = epath.Path(folder) / str(i)
        path.mkdir(parents=True, exist_ok=True)
        targets.append((Target(path, [{"member": i}], "test", str(i)), {"member": i}))
    mesh = make_mesh(shape)
    with jax.set_mesh(mesh), open_log("test", spec.training.steps, targets, [jsonl]) as log:
        evaluation = Evaluator(evaluate, _tokens(77, 1)[0])
        return train_together(Population(spec, evaluation, mesh, trials), log)


def _same(ours, theirs, **tolerance):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.fixture(scope="module")
def by_hand():
    """Every trial's parameters after each step of a plain loop over the train step, on a device.

    by_hand[trial][step].
    """
    spec = _spec()
    optimizer = optim.build(spec.training.optimizer, STEPS)
    step = jax.jit(train_step.make_step(LM, spec.loss, optimizer, {"teacher": LM}))
    begin = jax.jit(lambda params, key, rate: train_step.initialise(params, key, rate, optimizer))
    histories = []
    for trial in _trials():
        state = begin(trial.init_params(), trial.key, jnp.float32(trial.learning_rate))
        refs = {name: params() for name, (_, params) in trial.inputs.refs.items()}
        history = [state.params]
        for tokens in trial.inputs.streams["train"]:
            state, _ = step(state, refs, {"train": train_step.rows(tokens)})
            history.append(state.params)
        histories.append(history)
    return histories


FAST = [  # every axis alone or beside others
    MeshShape(sweep=1, data=2, fsdp=2, tensor=2),
    MeshShape(sweep=8, data=1),
]
SLOW = [
    MeshShape(sweep=2, data=1, fsdp=2, tensor=2),
    MeshShape(sweep=1, data=8),
    MeshShape(sweep=2, data=4),
    MeshShape(sweep=2, data=1, fsdp=4),
    MeshShape(sweep=2, data=1, tensor=4),
    MeshShape(sweep=2, data=2, fsdp=1, tensor=2),
]
SHAPES = [*FAST, *(pytest.param(shape, marks=pytest.mark.slow) for shape in SLOW)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_members_train_together_as_each_would_alone(shape, tmp_path, by_hand):
    trials, spec = _trials([_stop_at(STOPS.get(i)) for i in range(TRIALS)]), _spec()
    results = _fit(spec, trials, tmp_path, shape)
    score = jax.jit(lambda params: _cross_entropy(LM, params, _tokens(77, 1)[0]))
    assert [result.steps for result in results] == [STOPS.get(i, STEPS) for i in range(TRIALS)]
    for i, result in enumerate(results):
        _same(result.params(), by_hand[i][result.steps], rtol=0, atol=1e-5)
        expected = score(by_hand[i][result.steps])["ce"]
        np.testing.assert_allclose(result.scores["ce"], expected, rtol=1e-4)
        text = (tmp_path / str(i) / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        evaluated = [line["step"] for line in lines if "eval" in line]
        assert evaluated == list(range(0, result.steps + 1, 4))
        assert {line["member"] for line in lines} == {i}


def test_one_member_alone_is_the_plain_loop(tmp_path, by_hand):
    trial = _trials()[2]
    (result,) = _fit(_spec(), [trial], tmp_path, MeshShape(sweep=1, data=8))
    assert result.steps == STEPS
    _same(result.params(), by_hand[2][STEPS], rtol=0, atol=1e-5)


def test_a_population_that_is_done_at_once_is_not_trained(tmp_path):
    trials = _trials([lambda scores: True] * 2)
    results = _fit(_spec(), trials, tmp_path, MeshShape(sweep=2, data=4))
    for trial, result in zip(trials, results, strict=True):
        assert result.steps == 0
        _same(result.params(), trial.init_params(), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [SHAPES[3], SHAPES[-1]], ids=str)
def test_members_may_write_text(shape):
    """Arrays are placed inside a trial, too: along the axes that `sweep` has left."""
    mesh, prompts = make_mesh(shape), jnp.asarray(_tokens(3, 1)[0, :3])
    trials = jax.vmap(LM.init)(jax.random.split(jax.random.key(0), 8))

    def write(params, prompts):
        lengths, key = jnp.array([6, 2, 4]), jax.random.key(1)
        return generate(LM, params, prompts, lengths, key, new_tokens=5)

    alone = jax.jit(jax.vmap(write, (0, None)))(trials, prompts)
    with jax.set_mesh(mesh):
        together = jax.jit(over_slots(write, mesh))(trials, prompts)
    np.testing.assert_array_equal(together, alone)
    assert len(np.unique(alone)) > 3


def test_members_that_have_ended_are_not_scored_again(tmp_path):
    spec, scored = _spec(), []
    trials = _trials([_stop_at(STOPS.get(i, STEPS)) for i in range(TRIALS)])

    def evaluate(*arguments):
        jax.debug.callback(lambda: scored.append(1))
        return _cross_entropy(*arguments)

    _fit(spec, trials, tmp_path, MeshShape(sweep=1, data=8), evaluate)
    jax.effects_barrier()
    assert len(scored) == 5 + 5 + 4 + 3  # at steps 0, 4, 8 and 12


@pytest.mark.slow
def test_members_are_taken_out_one_after_another(tmp_path, monkeypatch):
    """Two such programs at once can wait for each other for good on simulated devices."""
    make_take, running, waited = loop.make_take, [], []

    @jax.jit
    def slowly(params):  # half a second of arithmetic
        turn = lambda _, x: jnp.tanh(x @ x)  # noqa: E731
        detour = jax.lax.fori_loop(0, 400, turn, jnp.full((300, 300), 0.1))
        return jax.tree.map(lambda w: w + 0 * detour[0, 0], params)

    def make_slow_take(lm, mesh, trains=None):
        take = make_take(lm, mesh, trains)

        def noted(stacked, lane):
            waited.extend(leaf.is_ready() for leaf in running)
            out = slowly(take(stacked, lane))
            running[:] = jax.tree.leaves(out)
            return out

        return noted

    monkeypatch.setattr(loop, "make_take", make_slow_take)
    trials = _trials([lambda scores: True] * 3)
    for result in _fit(_spec(), trials, tmp_path, MeshShape(sweep=2, data=4)):
        result.params()
    assert len(waited) > 2 and all(waited)


def test_the_members_parameters_survive(tmp_path):
    """States are donated from step to step; what the caller passed in is not."""
    params = [trial.init_params() for trial in _trials()[:2]]
    before = jax.tree.map(np.array, params)
    pairs = zip(_trials(), params, strict=False)
    trials = [replace(trial, init_params=lambda p=p: p) for trial, p in pairs]
    _fit(_spec(steps=1), trials, tmp_path, MeshShape(sweep=2, data=4))
    _same(params, before, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [MeshShape(data=8), MeshShape(sweep=2, data=4)], ids=str)
def test_a_model_is_asked_once_and_not_held(tmp_path, shape):
    """Three trials begin as two models; neither these nor the teacher live beside the states."""
    asked, alive = [], []

    def ask(seed):
        asked.append(seed)
        params = INIT(jax.random.key(seed))
        alive.extend(map(weakref.ref, jax.tree.leaves(params)))
        return params

    def stop(scores):
        gc.collect()
        held.append(sum(leaf() is not None for leaf in alive))
        return False

    held, models = [], [partial(ask, seed) for seed in (1, 2)]
    inputs = TrialInputs({"train": _tokens(0)}, {"teacher": (LM, partial(ask, 50))})
    trials = [Trial(str(i), models[i], jax.random.key(i), 0.01, inputs, stop) for i in (0, 1, 1)]
    results = _fit(_spec(steps=4), trials, tmp_path, shape)
    assert sorted(asked) == [1, 2, 50]
    assert len(held) == 3 and not any(held)
    alone = [result.params() for result in results]
    assert not np.allclose(alone[0]["embedding"], alone[1]["embedding"], atol=0.1)
    np.testing.assert_allclose(alone[1]["embedding"], alone[2]["embedding"], rtol=0, atol=1e-6)


def test_references_are_rounded_before_the_step(tmp_path):
    """Of a model that computes in bf16 the step gets bf16 matrices."""
    lm, seen = replace(LM, dtype="bfloat16"), []

    def loss(lm, params, refs, batch, key):
        seen.append({leaf.dtype for leaf in jax.tree.leaves(refs["teacher"].params)})
        return losses.distillation(lm, params, refs, batch, key)

    inputs = TrialInputs(
        {"train": _tokens(0)}, {"teacher": (lm, partial(INIT, jax.random.key(50)))}
    )
    trial = Trial("", partial(INIT, jax.random.key(1)), jax.random.key(0), 0.01, inputs)
    (result,) = _fit(
        replace(_spec(steps=1), lm=lm, loss=loss, refs={"teacher": lm}),
        [trial],
        tmp_path,
        MeshShape(),
    )
    assert seen and all(dtypes == {jnp.dtype("bfloat16"), jnp.dtype("float32")} for dtypes in seen)
    assert {leaf.dtype for leaf in jax.tree.leaves(result.params())} == {jnp.dtype("float32")}


def test_a_batch_the_mesh_does_not_divide_is_refused(tmp_path):
    spec = _spec()
    training = train_step.Training(2, 6, spec.training.optimizer, eval_every=1)
    with pytest.raises(ValueError, match="batch of 6 rows"):
        _fit(replace(spec, training=training), _trials()[:1], tmp_path, MeshShape(data=8))


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 17])
@pytest.mark.parametrize("hands", [1, 2, 3, 8])
def test_every_member_is_dealt_once_and_hands_are_even(count, hands):
    dealt = deal(count, hands)
    assert len(dealt) % hands == 0
    assert sorted(m for m in dealt if m >= 0) == list(range(count))
    shares = np.array(dealt).reshape(hands, -1)
    sizes = (shares >= 0).sum(-1)
    assert sizes.max() - sizes.min() <= 1
    for i in range(count - 1):  # neighbours go to different hands
        owner = [int(np.argwhere(shares == m)[0, 0]) for m in (i, i + 1)]
        assert hands == 1 or owner[0] != owner[1]


def test_a_member_that_is_lost_leaves_at_the_next_evaluation(tmp_path, by_hand):
    """The others train as they would alone."""
    trials = _trials()
    trials[2] = replace(trials[2], learning_rate=1e30)
    results = _fit(_spec(), trials, tmp_path, MeshShape(sweep=8, data=1))
    assert [result.steps for result in results] == [STEPS, STEPS, 4, STEPS, STEPS]
    assert [loop.has_diverged(result.scores) for result in results].index(True) == 2
    for i in (0, 1, 3, 4):
        _same(results[i].params(), by_hand[i][STEPS], rtol=0, atol=1e-5)


def test_what_the_devices_cannot_hold_is_refused_when_it_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(device_memory, "host_bytes", lambda: 8 * 2**10)
    with pytest.raises(ValueError, match="5 models trained together on batches of 8 rows: needs"):
        _fit(_spec(), _trials(), tmp_path, MeshShape(sweep=8, data=1))


# ---- what is said of training ----


class Said:
    """A log that keeps what it is told."""

    def __init__(self):
        self.records, self.bar = [], []

    def record(self, trial, **fields):
        self.records.append((trial, fields))

    def progress(self, step, loss, rate):
        self.bar.append((step, loss, rate))


def test_speed_and_loss_are_of_those_that_train_on(monkeypatch):
    """Three lanes, of trials 1, 0 and none; trial 0 ends after step 3. A record of the first
    step, and then every 2 steps.

    A step reads 4 rows of 5 tokens of one stream and 4 of 7 of another: 48 tokens a trial. The
    clock starts with the first record, so that compiling does not count.
    """
    monkeypatch.setattr(meters, "LOG_EVERY", 2)
    clock = iter([10.0, 12.0, 13.0, 16.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    log = Said()
    meter = meters.Meter(log, [1, 0, -1])
    batch = {"retain": np.zeros((1, 4, 6)), "forget": np.zeros((1, 4, 8))}
    active = np.array([True, True, False])
    for step in range(1, 7):
        losses_here = np.array([1.0, 3.0, 50.0]) * step
        meter.step(step, active, {"loss": losses_here, "norm": losses_here / 10}, batch)
        if step == 3:
            active[1] = False  # in place, as the loop does
    meter.flush()
    meter.flush()  # nothing more to tell

    def record(trial, step, loss, rate):
        return trial, {"step": step, "loss": loss, "norm": loss / 10, "tokens_per_second": rate}

    # the first record is written at step 2, when 2 steps are under way: none has been counted; the
    # second at step 4, after step 3 of two trials and 4 of one, in 2 seconds; the third at step 6,
    # after two more of one, a second later; the last after three more seconds
    second, third, last = 3 * 48 / 2, 5 * 48 / 3, 5 * 48 / 6
    assert log.records == [
        record(1, 1, 1.0, 0.0), record(0, 1, 3.0, 0.0),
        record(1, 2, 2.0, second), record(0, 2, 6.0, second),
        record(1, 4, 4.0, third), record(1, 6, 6.0, last),
    ]  # fmt: skip
    assert log.bar == [(1, 2.0, 0.0), (2, 4.0, second), (4, 4.0, third), (6, 6.0, last)]


def test_records_are_of_the_first_and_of_every_tenth_step():
    log = Said()
    meter = meters.Meter(log, [0])
    for step in range(1, 32):
        meter.step(step, np.array([True]), {"loss": np.ones(1)}, {"train": np.zeros((1, 4, 6))})
    meter.flush()
    assert [record["step"] for _, record in log.records] == [1, 10, 20, 30]


def test_the_speed_of_two_members_is_twice_that_of_one(monkeypatch):
    """Counted from the first record on: steps 5 to 8 of two trials, in 4 seconds."""
    monkeypatch.setattr(meters, "LOG_EVERY", 4)
    clock = iter([100.0, 101.0, 104.0])
    monkeypatch.setattr(meters.time, "perf_counter", lambda: next(clock))
    log = Said()
    meter = meters.Meter(log, [0, 1])
    for step in range(1, 9):
        if step == 5:
            meter.flush()
        meter.step(
            step, np.array([True, True]), {"loss": np.ones(2)}, {"train": np.zeros((2, 8, 17))}
        )
    meter.flush()
    assert log.bar == [(1, 1.0, 0.0), (4, 1.0, 0.0), (8, 1.0, 4 * 2 * 8 * 16 / 4)]
