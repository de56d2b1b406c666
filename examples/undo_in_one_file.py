"""Distillation robustifies unlearning (arXiv 2506.06278): the whole method in one file.

A language model that was made to forget often remembers after a few steps of fine-tuning. UNDO
distills it into a copy of itself that is damaged by noise: the noise destroys what the model knows
but no longer says, and the copy learns only what the model says. Here a small model of arithmetic
retains addition and subtraction, and forgets multiplication and division:

    pretrain ─ base ─ unlearn ─┬───────────────────────── relearn
          │                    └ noise ─ distill ──────── relearn
          └─── oracle, which never sees the forget set ── relearn

Relearning is the attack: the less it brings back, the more robust is the model. Data, parameters,
noise and losses are those of the package's experiments/quickstart.py. Sums are rounded otherwise,
so the models of a whole run differ as those of two seeds do.
"""

import argparse
import itertools
from collections import namedtuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
import optax

# ---- Data: B rows of T + 1 tokens, filled with equations such as 7*8=56 --------------------------
B, T, PROBLEMS, DATA_SEED = 16, 48, 60_000, 99
RETAIN, FORGET, TERMS, FACTORS = "+-", "*/", range(1, 13), range(1, 10)
FACTS = {  # every equation of an operation: training draws from them, and the exam asks for all
    "+": [f"{a}+{b}={a + b}" for a in TERMS for b in TERMS],
    "-": [f"{a}-{b}={a - b}" for a in TERMS for b in TERMS if a >= b],
    "*": [f"{a}*{b}={a * b}" for a in FACTORS for b in FACTORS],
    "/": [f"{c}/{a}={b}" for c, a, b in sorted((a * b, a, b) for a in FACTORS for b in FACTORS)],
}
TOKENS = "\n*+-/0123456789="  # one per character; the line break separates equations


def make_rows(operations):
    """Returns rows [R, T+1] of random equations; one that a row cuts short opens the next row."""
    rng = np.random.default_rng(DATA_SEED)
    tables = [FACTS[operations[i]] for i in rng.integers(len(operations), size=PROBLEMS)]
    drawn = rng.integers([len(table) for table in tables])
    order = np.random.default_rng(DATA_SEED).permutation(PROBLEMS)
    text = "\n" + "\n".join(tables[i][drawn[i]] for i in order) + "\n"
    stream = np.array([TOKENS.index(character) for character in text])
    line_breaks, start, rows = np.flatnonzero(stream == TOKENS.index("\n")), 0, []
    while start + T < len(stream):
        rows.append(stream[start : start + T + 1])
        start = line_breaks[np.searchsorted(line_breaks, start + T, side="right") - 1]
    return np.array(rows)


def batches(rows, order):
    """Yields batches [B, T+1] without end. `order` names the shuffle, a new one every epoch."""
    rngs = (np.random.default_rng((crc32(order.encode()), 0, i)) for i in itertools.count())
    indices = itertools.chain.from_iterable(rng.permutation(len(rows)) for rng in rngs)
    while True:
        yield rows[list(itertools.islice(indices, B))]


# ---- Model: a Gemma-2 of L layers of width D, with N heads of width H and F hidden units ---------
V, L, D, N, H, F = 24, 2, 48, 4, 12, 96  # V: size of the vocabulary
MATRICES = {
    "attention/query": (D, N * H), "attention/key": (D, N * H), "attention/value": (D, N * H),
    "attention/output": (N * H, D), "mlp/gate": (D, F), "mlp/up": (D, F), "mlp/down": (F, D),
}  # fmt: skip
NORMS = "before_attention/norm", "after_attention/norm", "before_mlp/norm", "after_mlp/norm"


def init(key):
    """Returns parameters by name: matrices of variance 1/D and norms of 0, stacked over layers."""
    first, second = jax.random.split(key)
    params = {"embedding": D**-0.5 * jax.random.normal(jax.random.fold_in(first, 0), (V, D))}
    for i, (name, shape) in enumerate(MATRICES.items()):
        keys = [jax.random.fold_in(key, i) for key in jax.random.split(second, L)]
        params[f"layers/{name}"] = D**-0.5 * jnp.stack([jax.random.normal(k, shape) for k in keys])
    norms = {f"layers/{name}": jnp.zeros((L, D)) for name in NORMS}
    return params | norms | {"final/norm": jnp.zeros(D)}


def log_p(params, tokens):
    """Maps tokens [B, T] to log-probabilities [B, T, V] of the tokens that follow them."""
    x = D**0.5 * params["embedding"][tokens]
    for layer in range(L):
        w = {name: params[f"layers/{name}"][layer] for name in (*MATRICES, *NORMS)}
        x = x + norm(attention(norm(x, w["before_attention/norm"]), w), w["after_attention/norm"])
        y = norm(x, w["before_mlp/norm"])
        gate, up = (jnp.einsum("btd,df->btf", y, w[f"mlp/{name}"]) for name in ("gate", "up"))
        y = jnp.einsum("btf,fd->btd", jax.nn.gelu(gate) * up, w["mlp/down"])
        x = x + norm(y, w["after_mlp/norm"])
    logits = jnp.einsum("btd,vd->btv", norm(x, params["final/norm"]), params["embedding"])
    return jax.nn.log_softmax(30 * jnp.tanh(logits / 30))


def norm(x, scale):
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * (1 + scale)


def attention(x, w):
    """Causal attention: token t sees the tokens s ≤ t. A tanh bounds the scores to ± 50."""
    matrices = (w[f"attention/{name}"].reshape(D, N, H) for name in ("query", "key", "value"))
    q, k, v = (jnp.einsum("btd,dnh->btnh", x, matrix) for matrix in matrices)
    scores = H**-0.5 * jnp.einsum("btnh,bsnh->bnts", rotate(q), rotate(k))
    p = jax.nn.softmax(50 * jnp.tanh(scores / 50), where=jnp.tri(x.shape[1], dtype=bool))
    y = jnp.einsum("bnts,bsnh->btnh", p, v)
    return jnp.einsum("btnh,nhd->btd", y, w["attention/output"].reshape(N, H, D))


def rotate(x):
    """Rotary positions: turns the pairs (x_i, x_{i+H/2}) of x [B, T, N, H] by t · 10⁴^(−2i/H)."""
    angle = jnp.arange(x.shape[1])[:, None, None] * 1e4 ** (-jnp.arange(H // 2) / (H // 2))
    a, b, cos, sin = *jnp.split(x, 2, axis=-1), jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


# ---- Losses, means over tokens in nats; and noise, which makes the student -----------------------
def cross_entropy(params, teacher, rows):
    """Pretraining and relearning: −log p(next token)."""
    return -jnp.mean(jnp.take_along_axis(log_p(params, rows[:, :-1]), rows[:, 1:, None], axis=-1))


def maxent(params, teacher, retain, forget):
    """Unlearning: KL(uniform ‖ p) on the forget set + cross entropy on the retain set (§2)."""
    uniform_kl = -jnp.mean(log_p(params, forget[:, :-1])) - np.log(V)
    return uniform_kl + cross_entropy(params, teacher, retain)


def distillation(params, teacher, rows):
    """Distillation: KL(teacher ‖ student), without labels (§3)."""
    log_t, log_s = (log_p(model, rows[:, :-1]) for model in (teacher, params))
    return jnp.mean(jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1))


def shrink_perturb(params, alpha, key, beta=0.1):
    """θ' = (1 − α) θ + α β N, where N is Xavier-uniform for matrices and 0 for norms (§4)."""
    student = {}
    for name, w in params.items():
        limit = 0.0 if name.endswith("norm") else (6 / sum(w.shape[-2:])) ** 0.5
        key_of_w = jax.random.fold_in(key, crc32(name.encode()))
        noise = jax.random.uniform(key_of_w, w.shape, minval=-limit, maxval=limit)
        student[name] = (1 - alpha) * w + alpha * beta * noise
    return student


# ---- Training: the rate rises for `warmup` steps, then falls along a cosine to `end` × its peak --
Stage = namedtuple("Stage", "loss rate steps warmup end eval_every")
PRETRAIN = Stage(cross_entropy, rate=5e-3, steps=1000, warmup=50, end=0.1, eval_every=250)
UNLEARN = Stage(maxent, rate=1e-3, steps=100, warmup=10, end=1.0, eval_every=25)
DISTILL = Stage(distillation, rate=6e-3, steps=1000, warmup=20, end=0.1, eval_every=25)
RELEARN = [Stage(cross_entropy, rate, 60, 10, 1.0, 5) for rate in (1e-3, 2e-3, 3e-3, 6e-3)]
Score = namedtuple("Score", "forget retain step")  # accuracies of a model after a step


def optimizer(stage):
    rise = optax.linear_schedule(stage.rate / stage.warmup, stage.rate, stage.warmup - 1)
    fall = optax.cosine_decay_schedule(stage.rate, stage.steps - stage.warmup, alpha=stage.end)
    rate = optax.join_schedules([rise, fall], [stage.warmup])
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))


@jax.jit(static_argnames="stage")
def update(stage, params, moments, teacher, *rows):
    loss, gradient = jax.value_and_grad(stage.loss)(params, teacher, *rows)
    updates, moments = optimizer(stage).update(gradient, moments)
    return optax.apply_updates(params, updates), moments, loss


@jax.jit(static_argnames="operation")
def accuracy(params, operation):
    """Returns the share of the operation's equations whose answer has no wrong token."""
    texts = [f"\n{fact}".ljust(10, "\n") for fact in FACTS[operation]]
    exam = jnp.array([[TOKENS.index(character) for character in text] for text in texts])
    is_right = jnp.argmax(log_p(params, exam[:, :-1]), axis=-1) == exam[:, 1:]
    is_answer = jnp.cumsum(exam == TOKENS.index("="), axis=1) * exam > 0  # and the line break
    return jnp.mean(jnp.all(is_right | ~is_answer[:, :-1], axis=1))


def train(name, stage, params, *streams, teacher=None, bar=np.inf):
    """Trains to the last step, or until the retain accuracy is above `bar` at an evaluation."""
    moments, loss, scores = optimizer(stage).init(params), np.nan, []
    for step in range(0, stage.steps + 1, stage.eval_every):
        forget = float(np.mean([accuracy(params, operation) for operation in FORGET]))
        retain = float(np.mean([accuracy(params, operation) for operation in RETAIN]))
        scores.append(Score(forget, retain, step))
        if step == stage.steps or retain > bar:
            break
        for _ in range(stage.eval_every):
            params, moments, loss = update(stage, params, moments, teacher, *map(next, streams))
    print(f"{name}: step {step}, loss {loss:.6f}, retain {retain:.2f}, forget {forget:.2f}")
    return params, scores


# ---- Every model, and the attacks on it ----------------------------------------------------------
def main(seed):
    key, models, worst = jax.random.key(seed), {}, {}
    pretrain, retain, forget = (make_rows(part) for part in (RETAIN + FORGET, RETAIN, FORGET))
    for name, rows in (("base", pretrain), ("oracle", retain)):
        fresh = init(jax.random.fold_in(key, crc32(f"pretrain/{name}".encode())))
        models[name] = train(name, PRETRAIN, fresh, batches(rows, f"pretrain/{seed}"))
    streams = batches(retain, f"unlearn/retain/{seed}"), batches(forget, f"unlearn/forget/{seed}")
    models["unlearn-only"] = train("unlearn-only", UNLEARN, models["base"][0], *streams)
    teacher, (*_, before) = models["unlearn-only"]
    students = {f"UNDO α={alpha}": alpha for alpha in (0.4, 0.6, 0.8)} | {"Unlearn-and-Distill": 1}
    for name, alpha in students.items():
        student_key = jax.random.fold_in(key, crc32(f"noise/{name}".encode()))
        student = init(student_key) if alpha == 1 else shrink_perturb(teacher, alpha, student_key)
        goal = {"teacher": teacher, "bar": before.retain - 0.05}
        models[name] = train(name, DISTILL, student, batches(pretrain, f"distill/{seed}"), **goal)
    # Relearning: the strongest attack counts that leaves a model 90 % of its retain accuracy.
    attacks = [*itertools.product((("forget", forget), ("mixed", pretrain)), RELEARN)]
    for name in ("unlearn-only", *students, "oracle"):
        params, points = models[name][0], models[name][1][-1:]
        for (data, rows), stage in attacks:
            stream = batches(rows, f"relearn/{data}/{seed}")
            points += train(f"{name} by {data} at {stage.rate}", stage, params, stream)[1]
        worst[name] = max(point for point in points if point.retain >= 0.9 * points[0].retain)
    # The table: robustness and FLOPs are in % of the oracle's. 4/3: a teacher's forward pass.
    columns = ("retain", "forget", "forget*", "retain*")  # *: under the strongest attack
    print(f"{'model':20}{''.join(f'{column:>9}' for column in columns)}  robustness  FLOPs")
    unlearned, oracle = worst["unlearn-only"].forget, worst["oracle"].forget
    for name in ("base", *worst):
        (*_, before), after = models[name][1], worst.get(name, Score(np.nan, np.nan, 0))
        robustness = 100 * (unlearned - after.forget) / ((unlearned - oracle) or np.nan)
        flops = 100 * 4 / 3 * before.step / PRETRAIN.steps if name in students else np.nan
        scores = before.retain, before.forget, after.forget, after.retain
        row = "".join(f"{score:9.2f}" for score in scores) + f"{robustness:12.0f}{flops:7.0f}"
        print(f"{name:20}{row}".replace("nan", "  –"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of the models and their batches")
    main(parser.parse_args().seed)
