"""Calls of the Triton kernels, their inputs, and programs that compute them in three ways.

With the kernels, with XLA's operations on the same bf16 numbers, and in fp32 throughout with
products exact to fp32: the plain reference.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax import lax
from jax.stages import Wrapped

from undo_jax.models.gemma2 import PRESETS
from undo_jax.ops import attention, attention_gpu, head, head_gpu

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))
import plain_head  # noqa: E402

SOFTCAPS = PRESETS["2B"].attention_softcap, PRESETS["2B"].final_softcap
USUAL, EXTREME, ZERO, EQUAL = "usual", "±1e4", "-0.0", "all equal"  # logits before the soft-cap
LOSSES = "cross_entropy", "kl_to_teacher", "kl_to_uniform"
EXACT = partial(jax.default_matmul_precision, "highest")  # no rounding of factors to TF32
Arrays = dict[str, jax.Array]


class AttentionCase(NamedTuple):
    """A call of attention; with documents, they begin at the thirds of a row."""

    width: int
    batch: int
    time: int
    window: int
    softcap: float | None = SOFTCAPS[0]
    heads: int = 8
    kv_heads: int = 4
    documents: bool = False
    logits: str = USUAL
    timed: bool = False

    def inputs(self) -> Arrays:
        """q, k and v, the weights of the output in the loss, and the first key a query sees."""
        heads = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads, "weights": self.heads}
        arrays = {
            name: jax.random.normal(key, (self.batch, self.time, count, self.width))
            for (name, count), key in zip(
                heads.items(), jax.random.split(jax.random.key(0), 4), strict=True
            )
        }
        if self.logits == EXTREME:
            arrays["q"] *= 1e4
        elif self.logits == ZERO:
            arrays["q"] = jnp.full_like(arrays["q"], -0.0)
        elif self.logits == EQUAL:
            arrays["k"] = jnp.broadcast_to(arrays["k"][:, :1], arrays["k"].shape)
        slots, third = jnp.arange(self.time), self.time // 3
        opened = slots // third * third if self.documents else jnp.zeros_like(slots)
        first = jnp.maximum(opened, slots - self.window + 1)
        return {
            **{name: x.astype(jnp.bfloat16) for name, x in arrays.items()},
            "first": jnp.broadcast_to(first, (self.batch, self.time)),
        }

    def program(self, kernels: bool) -> Wrapped:
        """The output and all gradients of Σ weights · output."""
        return jax.jit(lambda inputs: self.gradients(self.output(kernels), inputs))

    def output(self, kernels: bool) -> Any:
        """A function (q, k, v, first) -> output."""
        options = {"scale": self.width**-0.5, "softcap": self.softcap}
        if kernels:
            return lambda q, k, v, first: attention_gpu.attention(q, k, v, first=first, **options)
        last = jnp.arange(self.time)[None]
        return lambda *x: attention.attention(*x[:3], first=x[3], last=last, **options)

    def gradients(self, output: Any, inputs: Mapping[str, Any]) -> Arrays:
        def loss(*x):
            out = output(*x, inputs["first"])
            return jnp.sum(inputs["weights"].astype(jnp.float32) * out.astype(jnp.float32)), out

        run = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (_, out), (dq, dk, dv) = run(inputs["q"], inputs["k"], inputs["v"])
        return {"out": out, "dq": dq, "dk": dk, "dv": dv}

    def reference(self, inputs: Arrays) -> Arrays:
        """One row after another: scores are [N, T, T] in fp32."""

        def row(row_inputs):
            row_gradients = self.gradients(
                self.output(False), {name: x[None] for name, x in row_inputs.items()}
            )
            return jax.tree.map(lambda x: x[0], row_gradients)

        with EXACT():
            return jax.jit(partial(lax.map, row))(in_fp32(inputs))


class HeadCase(NamedTuple):
    """A loss of the head, and its gradients."""

    loss: str
    width: int
    batch: int
    time: int
    vocabulary: int
    softcap: float | None = SOFTCAPS[1]
    teacher_width: int | None = None  # None: the student's
    logits: str = USUAL
    timed: bool = False

    def inputs(self) -> Arrays:
        """Logits have a standard deviation of about 5; a quarter of the tokens does not count."""
        keys = iter(jax.random.split(jax.random.key(0), 7))
        rows = self.batch, self.time

        def model(width: int) -> tuple[jax.Array, jax.Array]:
            hidden = jax.random.normal(next(keys), (*rows, width))
            table = 5 * width**-0.5 * jax.random.normal(next(keys), (self.vocabulary, width))
            return hidden, table

        hidden, table = model(self.width)
        if self.logits == EXTREME:
            hidden *= 2e3
        elif self.logits == ZERO:
            hidden = jnp.full_like(hidden, -0.0)
        elif self.logits == EQUAL:  # all at the lower end of the soft-cap
            hidden, table = jnp.full_like(hidden, 1e3), jnp.full_like(table, -1)
        arrays = {"hidden": hidden, "table": table}
        if self.loss == "kl_to_teacher":
            teacher = model(self.teacher_width or self.width)
            arrays["teacher_hidden"], arrays["teacher_table"] = teacher
        counted = jax.random.uniform(next(keys), rows) > 0.25
        return {
            **{name: x.astype(jnp.bfloat16) for name, x in arrays.items()},
            "targets": jax.random.randint(next(keys), rows, 0, self.vocabulary),
            "weights": counted * jax.random.uniform(next(keys), rows) / counted.size,
        }

    def program(self, kernels: bool) -> Wrapped:
        """The loss, that of each token, and the gradients in hidden states and table."""

        def run(inputs):
            with mock.patch.object(head_gpu, "chosen", return_value=kernels):  # while it is traced
                return self.gradients(head, inputs)

        return jax.jit(run)

    def gradients(self, losses: ModuleType, inputs: Mapping[str, Any]) -> Arrays:
        extra_inputs = {
            "cross_entropy": ["targets"],
            "kl_to_teacher": ["teacher_hidden", "teacher_table"],
        }
        rest = [inputs[name] for name in extra_inputs.get(self.loss, [])]
        caps = [self.softcap] * (2 if self.loss == "kl_to_teacher" else 1)

        def loss(hidden, table, weights):
            return getattr(losses, self.loss)(hidden, table, *rest, weights, *caps)

        run = jax.value_and_grad(loss, argnums=(0, 1, 2))
        value, (d_hidden, d_table, each) = run(inputs["hidden"], inputs["table"], inputs["weights"])
        return {"value": value, "each": each, "d_hidden": d_hidden, "d_table": d_table}

    def reference(self, inputs: Arrays) -> Arrays:
        """One row after another: its logits are [T, V] in fp32."""
        tables = {name: x for name, x in in_fp32(inputs).items() if name.endswith("table")}
        rows = {name: x for name, x in in_fp32(inputs).items() if name not in tables}

        def row(tables, total, row_inputs):
            batch_of_one = {name: x[None] for name, x in row_inputs.items()}
            row_results = self.gradients(plain_head, {**tables, **batch_of_one})
            total = jax.tree.map(jnp.add, total, (row_results["value"], row_results["d_table"]))
            return total, (row_results["each"][0], row_results["d_hidden"][0])

        def run(tables, rows):
            start = jnp.zeros(()), jnp.zeros_like(tables["table"])
            (value, d_table), (each, d_hidden) = lax.scan(partial(row, tables), start, rows)
            return {"value": value, "each": each, "d_hidden": d_hidden, "d_table": d_table}

        with EXACT():
            return jax.jit(run)(tables, rows)


Case = AttentionCase | HeadCase


def in_fp32(arrays: Arrays) -> Arrays:
    return {n: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x for n, x in arrays.items()}


def cases(dry: bool) -> dict[str, Case]:
    """All cases, by name."""
    return _toys() if dry else {**_attentions(), **_heads()}


def _toys() -> dict[str, Case]:
    """A few, with sizes that no tile divides either."""
    toy_attention = partial(AttentionCase, 32, 1, 70, 20, heads=2, kv_heads=1)
    toys: dict[str, Case] = {
        "attention, documents": toy_attention(documents=True, timed=True),
        f"attention, no soft-cap, logits {EXTREME}": toy_attention(softcap=None, logits=EXTREME),
        f"attention, logits {EQUAL}": toy_attention(logits=EQUAL),
    }
    toy_head = partial(HeadCase, width=64, batch=1, time=130, vocabulary=300)
    for loss, logits in (*zip(LOSSES, (ZERO, USUAL, EXTREME), strict=True), (LOSSES[1], EXTREME)):
        toys[f"{loss}, logits {logits}"] = toy_head(loss, teacher_width=128, logits=logits)
    return toys


def _attentions() -> dict[str, Case]:
    attention_cases: dict[str, Case] = {}
    for width in attention_gpu.TILES:
        name, whole = f"attention, H={width}", partial(AttentionCase, width, 4, 2048, timed=True)
        attention_cases[f"{name}, T=2048"] = whole(2048)
        attention_cases[f"{name}, T=2048, window 512, documents"] = whole(512, documents=True)
        attention_cases[f"{name}, T=77"] = AttentionCase(width, 3, 77, 77)
        name, ragged = f"{name}, T=1000", partial(AttentionCase, width, 2, 1000, 300, kv_heads=1)
        attention_cases[f"{name}, documents"] = ragged(documents=True)
        attention_cases[f"{name}, no soft-cap"] = ragged(softcap=None)
        for logits in (EXTREME, ZERO, EQUAL):
            attention_cases[f"{name}, logits {logits}"] = ragged(logits=logits)
        attention_cases[f"{name}, no soft-cap, logits {EXTREME}"] = ragged(
            softcap=None, logits=EXTREME
        )
    for width in (128, 256):  # those of the presets from 0.1B on, whose window is 4096
        name = f"attention, H={width}, T=8192, window 4096"
        attention_cases[name] = AttentionCase(width, 1, 8192, 4096, timed=True)
    return attention_cases


def _heads() -> dict[str, Case]:
    head_cases: dict[str, Case] = {}
    for loss in LOSSES:
        head_cases[f"{loss}, D=320, V=256000"] = HeadCase(loss, 320, 4, 2048, 256_000, timed=True)
        head_cases[f"{loss}, D=320, 77 tokens, V=300"] = HeadCase(loss, 320, 1, 77, 300, None)
        name, ragged = (
            f"{loss}, D=320, 999 tokens, V=32003",
            partial(HeadCase, loss, 320, 3, 333, 32_003),
        )
        head_cases[name] = ragged(teacher_width=640)
        head_cases[f"{name}, logits {EXTREME}"] = ragged(logits=EXTREME)
        head_cases[f"{name}, no soft-cap, logits {EXTREME}"] = ragged(softcap=None, logits=EXTREME)
        if loss != "kl_to_uniform":  # it is 0 there
            head_cases[f"{name}, logits {ZERO}"] = ragged(logits=ZERO)
            head_cases[f"{name}, logits {EQUAL}"] = ragged(logits=EQUAL)
    for width in (640, 768, 1024, 2304):  # is the rule of `head_gpu.chosen` right?
        name = f"kl_to_teacher, D={width}, V=256000"
        head_cases[name] = HeadCase("kl_to_teacher", width, 2, 2048, 256_000, timed=True)
    return head_cases
