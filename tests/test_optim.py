import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from undo_jax.training import optim
from undo_jax.training.optim import AdamW, Trains, pick, put


def _rates(config, steps):
    return np.array([optim.schedule(config, steps)(step) for step in range(steps)])


def test_the_first_update_of_a_warmup_already_moves():
    rates = _rates(AdamW(warmup=4), 10)
    np.testing.assert_allclose(rates, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])
    optimizer = optim.build(AdamW(warmup=4), 10)
    params = {"w": jnp.array([1.0, -2.0])}
    update, _ = optimizer.update({"w": jnp.array([0.3, -0.3])}, optimizer.init(params), params)
    np.testing.assert_allclose(update["w"], [-0.25, 0.25], rtol=1e-5)  # Adam's first step is ±rate


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_rate_falls_from_its_peak_to_its_end(decay):
    config = AdamW(warmup=5, decay=decay, end=0.1)
    fraction = optim.schedule(config, 25)
    np.testing.assert_allclose([fraction(5), fraction(15), fraction(25)], [1, 0.55, 0.1], rtol=1e-6)
    np.testing.assert_allclose(fraction(100), 0.1, rtol=1e-6)
    assert (np.diff(_rates(config, 25)[5:]) < 0).all()
    quarter = 0.1 + 0.9 * {"cosine": 0.5 * (1 + np.sqrt(0.5)), "linear": 0.75}[decay]
    np.testing.assert_allclose(fraction(10), quarter, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_the_schedules_are_those_of_optax(warmup):
    """Its warm-up begins at 0, one step before ours."""
    steps = 20
    rest = steps - warmup
    falling = {
        "cosine": optax.cosine_decay_schedule(1.0, rest, 0.2),
        "linear": optax.linear_schedule(1.0, 0.2, rest),
        "constant": optax.constant_schedule(1.0),
    }
    for decay, schedule in falling.items():
        joined = [(step + 1) / warmup for step in range(warmup)] + [
            schedule(i) for i in range(rest)
        ]
        rates = _rates(AdamW(warmup=warmup, decay=decay, end=0.2), steps)
        np.testing.assert_allclose(rates, joined, rtol=1e-6, err_msg=decay)


def test_a_warmup_longer_than_training_never_reaches_the_peak():
    rates = _rates(AdamW(warmup=10, decay="cosine"), 4)
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(_rates(AdamW(warmup=4, decay="linear"), 4), [0.25, 0.5, 0.75, 1])


GRADIENTS = [
    [0.3, -0.4, 0.02],
    [-5.0, 2.0, 0.5],
    [0.1, 0.1, -0.3],
    [0.0, 0.7, 0.2],
    [0.4, -0.2, 0.0],
]
CONFIGS = {
    "the default": AdamW(),
    "all constants": AdamW(b1=0.7, b2=0.95, epsilon=0.1, weight_decay=0.03, clip=0.6,
                           warmup=2, decay="cosine", end=0.3),
    "no momentum": AdamW(b1=0.0, b2=0.5, epsilon=1e-3, clip=100.0, decay="linear", end=0.0),
}  # fmt: skip


def _walk(config, rate=0.05):
    """Parameters after each update of `build`'s chain, as the train step applies it."""
    optimizer = optim.build(config, len(GRADIENTS))
    params, walk = {"w": jnp.array([1.0, -2.0, 0.5])}, []
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = {"w": params["w"] + rate * updates["w"]}
        walk.append(np.array(params["w"]))
    return walk


@pytest.mark.parametrize("name", list(CONFIGS))
def test_a_walk_is_that_of_optax_adamw(name):
    config, steps = CONFIGS[name], len(GRADIENTS)
    rates = {
        "the default": [1.0] * steps,
        "all constants": [0.5, 1, 1, 0.3 + 0.7 * 0.75, 0.3 + 0.7 * 0.25],  # cos 0, 60° and 120°
        "no momentum": [1, 0.8, 0.6, 0.4, 0.2],
    }[name]
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.adamw(
            lambda step: 0.05 * jnp.array(rates)[step],
            b1=config.b1, b2=config.b2, eps=config.epsilon, weight_decay=config.weight_decay,
        ),
    )  # fmt: skip
    params, walk = {"w": jnp.array([1.0, -2.0, 0.5])}, []
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        walk.append(np.array(params["w"]))
    np.testing.assert_allclose(_walk(config), walk, rtol=1e-5, atol=1e-7)


def test_a_walk_by_hand():
    """Loshchilov & Hutter's equations (arXiv 1711.05101), in float64."""
    w, mean, square, walk = np.array([1.0, -2.0, 0.5]), np.zeros(3), np.zeros(3), []
    for step, (rate, gradient) in enumerate(zip([0.5, 1, 1, 0.825, 0.475], GRADIENTS, strict=True)):
        gradient = np.array(gradient)
        gradient = gradient * min(1, 0.6 / np.sqrt(np.sum(gradient**2)))
        mean = 0.7 * mean + 0.3 * gradient
        square = 0.95 * square + 0.05 * gradient**2
        unbiased = mean / (1 - 0.7 ** (step + 1)), square / (1 - 0.95 ** (step + 1))
        w = w - 0.05 * rate * (unbiased[0] / (np.sqrt(unbiased[1]) + 0.1) + 0.03 * w)
        walk.append(w)
    np.testing.assert_allclose(_walk(CONFIGS["all constants"]), walk, rtol=1e-5)


def _by_hand(update, *state):
    """Parameters after each gradient, clipped to a norm of 1, by `update(g, *state)`."""
    w, walk = np.array([1.0, -2.0, 0.5]), []
    for gradient in map(np.array, GRADIENTS):
        gradient = gradient / max(1, np.sqrt(np.sum(gradient**2)))
        step, *state = update(gradient, *state)
        w = w - 0.05 * (step + 0.03 * w)
        walk.append(w)
    return walk


def test_a_walk_by_sgd_with_momentum():
    def update(g, v):
        return (v := 0.9 * v + g), v

    found = _walk(optim.SGD(weight_decay=0.03))
    np.testing.assert_allclose(found, _by_hand(update, np.zeros(3)), rtol=1e-5)


def test_a_walk_by_lion():
    """Algorithm 2 of arXiv 2302.06675."""

    def update(g, m):
        return np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g

    found = _walk(optim.Lion(weight_decay=0.03))
    np.testing.assert_allclose(found, _by_hand(update, np.zeros(3)), rtol=1e-5)


def test_a_walk_by_adafactor():
    """Algorithm 5 of arXiv 1804.04235 without factors, which vectors do not have."""

    def update(g, v, t):
        decay = 1 - (t + 1.0) ** -0.8
        v = decay * v + (1 - decay) * (g**2 + 1e-30)
        step = g / np.sqrt(v)
        return step / max(1, np.sqrt(np.mean(step**2))), v, t + 1

    found = _walk(optim.Adafactor(weight_decay=0.03))
    np.testing.assert_allclose(found, _by_hand(update, np.zeros(3), 0), rtol=1e-5)


def test_adafactor_keeps_a_row_and_a_column_of_a_large_matrix():
    made = optim.build(optim.Adafactor(), 5).init({"w": jnp.zeros((128, 256))})
    sizes = sorted(x.size for x in jax.tree.leaves(made))
    assert sizes[-2:] == [128, 256]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: optim.SGD(momentum=1.0), r"momentum=1.0: it must be in \[0, 1\)"),
        (lambda: optim.Lion(b2=-0.1), r"b2=-0.1: it must be in \[0, 1\)"),
        (lambda: optim.Adafactor(decay_rate=1.5), r"decay_rate=1.5: it must be in \[0, 1\)"),
        (lambda: optim.SGD(clip=0.0), "clip=0.0: it must be positive"),
    ],
)
def test_numbers_of_other_optimizers_are_checked(made, said):
    with pytest.raises(ValueError, match=said):
        made()


def test_an_optimizer_of_ones_own_has_what_all_have():
    @dataclass(frozen=True)
    class Adagrad(optim.Optimizer):
        weight_decay: float = 0.0
        clip: float = 1.0

        @property
        def update(self):
            return optax.scale_by_rss(initial_accumulator_value=0.0)

    built = optim.build(Adagrad(), 10)
    params = {"w": jnp.array([1.0, -2.0])}
    update, _ = built.update({"w": jnp.array([0.3, -0.2])}, built.init(params), params)
    np.testing.assert_allclose(update["w"], [-1, 1], rtol=1e-4)

    @dataclass(frozen=True)
    class Bare(optim.Optimizer):
        clip: float = 1.0

    with pytest.raises(ValueError, match="Bare lacks weight_decay, update: see those of SGD"):
        Bare()


def test_the_default_constants_are_those_of_the_literature():
    """Kingma & Ba's (arXiv 1412.6980); small gradients show epsilon."""
    config = AdamW()
    assert (config.b1, config.b2, config.epsilon, config.weight_decay) == (0.9, 0.999, 1e-8, 0)
    assert (config.learning_rate, config.clip, config.warmup, config.decay) == (1, 1, 0, "constant")
    assert (config.end, config.first_moment) == (0.1, "float32")
    optimizer = optim.build(config, 10)
    params = {"w": jnp.zeros(1)}
    update, _ = optimizer.update({"w": jnp.array([1e-8])}, optimizer.init(params), params)
    np.testing.assert_allclose(update["w"], [-0.5], rtol=1e-4)  # 1e-8 / (1e-8 + epsilon)


def test_a_large_gradient_is_clipped_by_its_global_norm():
    """Adam hides the scale of one gradient, so two gradients of different scale show the clip."""

    def second_update(gradients, clip):
        optimizer = optim.build(AdamW(clip=clip), 10)
        params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
        state = optimizer.init(params)
        for gradient in gradients:
            update, state = optimizer.update(dict(zip("ab", gradient, strict=True)), state, params)
        return np.array([update["a"][0], update["b"][0]])

    small, large = jnp.array([[0.6], [0.8]]), jnp.array([[30.0], [40.0]])
    clipped = second_update([small, large], clip=1.0)
    np.testing.assert_allclose(clipped, second_update([small, small], clip=1e9), rtol=1e-5)
    assert not np.allclose(clipped, second_update([small, large], clip=1e9), rtol=1e-2)


def test_weight_decay_is_decoupled_from_the_gradient():
    optimizer = optim.build(AdamW(weight_decay=0.1), 10)
    params = {"w": jnp.array([2.0])}
    update, _ = optimizer.update({"w": jnp.zeros(1)}, optimizer.init(params), params)
    np.testing.assert_allclose(update["w"], [-0.2], rtol=1e-6)


def test_the_first_moment_may_take_half_the_memory():
    """Weights stay fp32, and so does the second moment: its changes are below bf16's resolution."""
    params = {"w": jnp.array([1.0, -2.0])}
    updates = []
    for dtype in ("float32", "bfloat16"):
        optimizer = optim.build(AdamW(first_moment=dtype), 10)
        state = optimizer.init(params)
        for gradient in ([0.3, -0.3], [0.1, 0.2], [0.25, -0.5]):
            update, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        assert state[1].mu["w"].dtype == dtype and state[1].nu["w"].dtype == "float32"
        assert update["w"].dtype == "float32"
        updates.append(np.array(update["w"]))
    np.testing.assert_allclose(*updates, rtol=0.01)
    assert (updates[0] != updates[1]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first_moment": "float16"}, "first_moment='float16': float32 or bfloat16$"),
        ({"learning_rate": 0.0}, "learning_rate=0.0: it must be positive$"),
        ({"learning_rate": float("nan")}, "learning_rate=nan: it must be positive$"),
        ({"epsilon": 0.0}, "epsilon=0.0: it must be positive$"),
        ({"clip": 0.0}, "clip=0.0: it must be positive$"),
        ({"warmup": -1}, "warmup=-1: it must not be negative$"),
        ({"end": -0.1}, "end=-0.1: it must not be negative$"),
        ({"weight_decay": float("nan")}, "weight_decay=nan: it must not be negative$"),
        ({"b1": -0.1}, r"b1=-0.1: it must be in \[0, 1\)$"),
        ({"b1": 1.0}, r"b1=1.0: it must be in \[0, 1\)$"),
        ({"b2": 1.0}, r"b2=1.0: it must be in \[0, 1\)$"),
        ({"b2": -1.0}, r"b2=-1.0: it must be in \[0, 1\)$"),
        ({"decay": "square"}, "unknown decay 'square': cosine, linear or constant$"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AdamW(**change)


def test_settings_at_the_edge_make_sense():
    AdamW(b1=0.0, b2=0.0, warmup=0, end=0.0, weight_decay=0.0, learning_rate=1e-9, clip=1e-9)


TREE = {
    "embedding": np.arange(6.0).reshape(3, 2),
    "final": {"norm": np.ones(2)},
    "layers": {
        "mlp": {"down": np.arange(8.0).reshape(4, 2), "up": -np.arange(8.0).reshape(4, 2)},
        "norm": np.full((4, 2), 5.0),
    },
}


def _picked(*parts):
    """By path, as lists."""
    leaves = jax.tree_util.tree_leaves_with_path(pick(Trains(parts), TREE))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.array(leaf).tolist()
            for path, leaf in leaves}  # fmt: skip


def test_what_trains_is_picked_by_path_and_layer():
    down, up = [[2, 3], [6, 7]], [[-2, -3]]
    assert _picked((r"mlp/down$", (3, 1))) == {"layers/mlp/down": down}
    assert _picked((r"mlp/down$", (3, 1)), (r"up$", range(1, 2))) == {
        "layers/mlp/down": down,
        "layers/mlp/up": up,
    }
    assert _picked((r"norm$", None)) == {"final/norm": [1, 1], "layers/norm": [[5, 5]] * 4}
    assert _picked((r"down", (0,)), (r"down$", (1, 0))) == {"layers/mlp/down": [[0, 1], [2, 3]]}
    assert set(_picked((r"down", (0,)), (r"", None))) == {
        "embedding", "final/norm", "layers/mlp/down", "layers/mlp/up", "layers/norm",
    }  # fmt: skip
    assert pick(None, TREE) is TREE


def test_what_is_put_back_changes_nothing_else():
    trains = Trains(((r"mlp/down$", (1, 3)), (r"embedding", None)))
    changed = put(trains, TREE, jax.tree.map(lambda w: w + 100, pick(trains, TREE)))
    down = TREE["layers"]["mlp"]["down"] + np.array([0, 100, 0, 100])[:, None]
    np.testing.assert_array_equal(changed["layers"]["mlp"]["down"], down)
    np.testing.assert_array_equal(changed["embedding"], TREE["embedding"] + 100)
    assert changed["layers"]["mlp"]["up"] is TREE["layers"]["mlp"]["up"]
    assert changed["final"]["norm"] is TREE["final"]["norm"]


def test_two_that_train_the_same_are_equal():
    assert Trains((("down", range(1, 3)),)) == Trains((("down", [2, 1, 2]),))
    assert hash(Trains((("down", range(1, 3)),))) == hash(Trains((("down", (1, 2)),)))
    assert Trains((("down", None),)) != Trains((("down", (0,)),))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((), "trains=(): give parts, each (path, layers or None)"),
        ("down", "trains='down': give parts, each (path, layers or None)"),
        (("down", None), "trains: 'down' is no pair: give (path, layers or None)"),
        ((("(", None),), "trains: '(' is no regular expression"),
        ((("down", ()),), "trains: layers=() of 'down': give e.g. range(5, 11), or None"),
        ((("down", 3),), "trains: layers=3 of 'down': give"),
        ((("down", (-1,)),), "trains: layers=(-1,) of 'down': give"),
        ((("down", (0.5,)),), "trains: layers=(0.5,) of 'down': give"),
    ],
)
def test_what_cannot_train_is_refused(parts, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        Trains(parts)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (("dwon$", None), "trains: 'dwon$' finds none of embedding, final/norm, layers/mlp/down"),
        (("down$", (1, 4)), "trains: layers/mlp/down has layers 0 to 3, not 4"),
        (("embed", (0,)), "trains: embedding has no layers, but (0,) are given: give None"),
    ],
)
def test_what_a_model_does_not_have_cannot_train(part, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}"):
        pick(Trains((("up$", None), part)), TREE)
