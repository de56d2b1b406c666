"""A linear classifier of documents by a language model's states."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from undo_jax.types import LM, Frozen, Key, Params, Rows, Rules, table_shape

NEWTON = 30  # iterations; a dozen are enough


@dataclass(frozen=True)
class Probe:
    """Logistic regression on the mean of a document's residual states after `layer` layers.

    It is no language model, but has the methods that stored models need: `init`, `rules`, `rounded`
    and `forward_flops`. Its parameters are a direction [D] and a bias.
    """

    lm: LM  # the model whose states it reads
    layer: int

    @property
    def rules(self) -> Rules:
        return (("", P()),)

    def init(self, key: Key) -> Params:
        """Returns zeros: both classes are equally likely."""
        return {"direction": jnp.zeros(table_shape(self.lm).shape[1]), "bias": jnp.zeros(())}

    def rounded(self, params: Params) -> Params:
        return params

    def forward_flops(self, time: int) -> float:
        """Returns FLOPs per token of the classifier alone, without the language model."""
        return 2.0 * table_shape(self.lm).shape[1]

    def flags(self, params: Params, reader: Frozen, rows: Rows) -> Bool[Array, "B T"]:
        """Returns whether each token's document is of the second class.

        `reader` is the language model whose states are classified.
        """
        states = reader.lm.activations(reader.params, rows.inputs, self.layer)
        scores = states.astype(jnp.float32) @ params["direction"]
        documents = _documents(rows)
        sums, counts = _sums(scores, documents), _sums(jnp.ones(scores.shape), documents)
        means = sums / jnp.maximum(counts, 1)
        return jnp.take_along_axis(means, documents, axis=1) + params["bias"] > 0

    def pooled(
        self, params: Params, rows: Rows
    ) -> tuple[Float[Array, "documents D"], Float[Array, " documents"]]:
        """Returns the mean state of each document, and 1 where there is a document, else 0.

        `params` are those of `lm`. There are B · (T + 1) slots: a row has at most T + 1 documents.
        """
        states = self.lm.activations(params, rows.inputs, self.layer).astype(jnp.float32)
        documents = _documents(rows)
        counts = _sums(jnp.ones(rows.inputs.shape), documents)
        means = _sums(states, documents) / jnp.maximum(counts, 1)[..., None]
        return means.reshape(-1, means.shape[-1]), (counts > 0).astype(jnp.float32).reshape(-1)


def fit(
    states: Float[Array, "n D"],
    labels: Float[Array, " n"],
    weights: Float[Array, " n"],
    penalty: float,
) -> Params:
    """Returns the parameters of a `Probe`, fitted by ridge logistic regression (Newton's method).

    The objective is the cross entropy, averaged with equal total weight for both classes, plus
    penalty / 2 · |w|², where w acts on standardised states. Labels are 0 or 1; examples of weight 0
    are ignored.
    """
    ones, zeros = weights * labels, weights * (1 - labels)
    share = (ones / jnp.sum(ones) + zeros / jnp.sum(zeros)) / 2
    mean = share @ states
    scale = jnp.sqrt(share @ jnp.square(states - mean)) + 1e-6
    x = jnp.pad((states - mean) / scale, ((0, 0), (0, 1)), constant_values=1.0)
    ridge = penalty * jnp.ones(x.shape[1]).at[-1].set(0.0)  # the bias is free

    def newton(_, w):
        p = jax.nn.sigmoid(x @ w)
        gradient = x.T @ (share * (p - labels)) + ridge * w
        hessian = (x * (share * p * (1 - p))[:, None]).T @ x + jnp.diag(ridge + 1e-9)
        return w - jnp.linalg.solve(hessian, gradient)

    with jax.default_matmul_precision("highest"):
        w = jax.lax.fori_loop(0, NEWTON, newton, jnp.zeros(x.shape[1]))
        direction = w[:-1] / scale
        return {"direction": direction, "bias": w[-1] - mean @ direction}


def _documents(rows: Rows) -> Array:
    """Returns the number of each token's document in its row; 0 without segments."""
    return jnp.zeros_like(rows.inputs) if rows.segments is None else rows.segments


def _sums(values: Array, documents: Array) -> Array:
    """Sums values [B, T, ...] over the tokens of each document, [B, T + 1, ...]."""
    most = documents.shape[1] + 1
    return jax.vmap(lambda v, d: jax.ops.segment_sum(v, d, most))(values, documents)
