import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax import optim
from undo_jax.optim import AdamW


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
        ({"first_moment": "float16"}, "first_moment='float16'"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"clip": -1.0}, "clip=-1"),
        ({"warmup": -1}, "warmup=-1"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"b2": 1.0}, "b2=1.0"),
        ({"decay": "square"}, "'square'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        AdamW(**change)
