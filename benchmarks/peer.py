"""A distillation step here and in PyTorch: `python benchmarks/peer.py --preset 0.1B --rows 4`.

The same model, batch and work in both (teacher forward, student forward and backward, clip, AdamW),
on random tokens; each variant in a process of its own, one after another. PyTorch's are what a good
user would write with transformers: fp32 (the official code's numerics) and bf16 autocast, both
also compiled. Ratios are to the first. Needs the extra `test`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from arguments import positive

from undo_jax.fit import bench
from undo_jax.fit.step import distillation
from undo_jax.logs.log import format_number
from undo_jax.models.architecture import REMAT
from undo_jax.models.gemma2 import PRESETS, preset
from undo_jax.models.transformer import Transformer
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.training.optim import AdamW
from undo_jax.training.train_step import Training


class PyTorchVariant(NamedTuple):
    """How PyTorch computes the step."""

    autocast: bool = False  # to bf16
    compiled: bool = False
    attention: str = "eager"  # what transformers is asked for
    liger: bool = False  # Liger's fused head and KL


PYTORCH = {
    "PyTorch fp32": PyTorchVariant(),
    "PyTorch fp32, compiled": PyTorchVariant(compiled=True),
    "PyTorch bf16": PyTorchVariant(autocast=True, attention="sdpa"),
    "PyTorch bf16, compiled": PyTorchVariant(autocast=True, compiled=True, attention="sdpa"),
}
ON_GPU = {  # PyTorch's flex attention has no gradient on CPU, Liger's kernels need a GPU
    "PyTorch bf16, flex attention": PyTorchVariant(autocast=True, compiled=True, attention="flex"),
    "PyTorch bf16, Liger": PyTorchVariant(autocast=True, attention="sdpa", liger=True),
}
OURS = {"undo_jax fp32": "float32", "undo_jax bf16": "bfloat16"}
LEARNING_RATE = 1e-5


class Measured(NamedTuple):
    """Of a step. Bytes are None on CPU."""

    tokens_per_second: float
    peak_bytes: float | None  # at any time, of what was allocated
    note: str = ""


def pytorch_models(lm: Transformer, attention: str, device: str) -> tuple[list[Any], str]:
    """Teacher and student, and what is to be said of their attention.

    PyTorch's SDPA has no soft-cap: a model with one has eager attention in its place.
    """
    import transformers

    note = "" if attention == "eager" else f"{attention} attention"
    if attention == "sdpa" and lm.attention_softcap is not None:
        attention, note = "eager", "eager attention: SDPA has no soft-cap"
    describe: Any = transformers.Gemma2Config
    make: Any = transformers.Gemma2ForCausalLM
    theirs = describe(
        vocab_size=lm.vocabulary,
        hidden_size=lm.width,
        intermediate_size=lm.feed_forward,
        num_hidden_layers=lm.layers,
        num_attention_heads=lm.heads,
        num_key_value_heads=lm.kv_heads,
        head_dim=lm.head_width,
        query_pre_attn_scalar=round(lm.attention_scale**-2),
        attn_logit_softcapping=lm.attention_softcap,
        final_logit_softcapping=lm.final_softcap,
        sliding_window=lm.window,
        use_cache=False,
        attn_implementation=flex() if attention == "flex" else attention,
    )
    return [make(theirs).to(device).eval(), make(theirs).to(device).train()], note


def flex() -> str:
    """The name under which transformers finds its flex attention, for autocast.

    Rotary positions leave queries and keys in fp32 there, values are in bf16, and flex attention
    takes one dtype only.
    """
    from transformers.integrations.flex_attention import flex_attention_forward
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def forward(module: Any, query: Any, key: Any, value: Any, *rest: Any, **more: Any) -> Any:
        query, key = query.to(value.dtype), key.to(value.dtype)
        return flex_attention_forward(module, query, key, value, *rest, **more)

    name = "flex_attention_of_one_dtype"
    ALL_ATTENTION_FUNCTIONS.register(name, forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["flex_attention"])
    return name


def pytorch_loss(
    teacher: Any, student: Any, tokens: Any, variant: PyTorchVariant
) -> Callable[[], Any]:
    """Σ KL(teacher ‖ student) / rows / T, in nats; Liger's is that of logits without soft-caps."""
    import torch

    def of_logits() -> Any:
        with torch.no_grad():
            teacher_logits = teacher(tokens).logits
        logits = student(tokens).logits
        log_p, log_t = (z.float().log_softmax(-1).flatten(0, 1) for z in (logits, teacher_logits))
        kl_div = torch.nn.functional.kl_div
        return kl_div(log_p, log_t, log_target=True, reduction="batchmean")

    def fused() -> Any:
        from liger_kernel.transformers import LigerFusedLinearJSD  # type: ignore[import-not-found]

        with torch.no_grad():
            teacher_states = teacher.model(tokens).last_hidden_state.flatten(0, 1)
        states = student.model(tokens).last_hidden_state.flatten(0, 1)
        tables = student.lm_head.weight, teacher.lm_head.weight
        kl = LigerFusedLinearJSD(jsd_beta=0.0)  # the forward KL
        return kl(states, tables[0], teacher_states, tables[1], None)

    def loss() -> Any:
        kind = tokens.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=variant.autocast):
            return fused() if variant.liger else of_logits()

    return torch.compile(loss) if variant.compiled else loss


def of_pytorch(
    lm: Transformer, rows: int, length: int, steps: int, variant: PyTorchVariant
) -> Measured:
    """Measure PyTorch's step. Raises ImportError where Liger is asked for and not installed."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    (teacher, student), note = pytorch_models(lm, variant.attention, device)
    if variant.liger:
        import liger_kernel  # type: ignore[import-not-found]  # noqa: F401

        note = "; ".join(filter(None, [note, "another function: no soft-cap of logits"]))
    optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE, fused=device == "cuda")
    tokens = torch.randint(0, lm.vocabulary, (rows, length), device=device)
    loss = pytorch_loss(teacher, student, tokens, variant)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()

    def run(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / count

    run(bench.WARM)
    rate = rows * length / run(steps)
    return Measured(rate, torch.cuda.max_memory_allocated() if device == "cuda" else None, note)


def of_jax(lm: Transformer, rows: int, length: int, steps: int) -> Measured:
    """Measure the step here."""
    training = Training(100, rows, AdamW(LEARNING_RATE), eval_every=50)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    speed = bench.measure(distillation(lm, lm, training, length), mesh, steps)
    return Measured(rows * length / speed.seconds, speed.peak_bytes)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="0.1B")
    parser.add_argument("--rows", type=positive, default=4)
    parser.add_argument("--length", type=positive, default=2048, help="tokens of a row")
    parser.add_argument("--steps", type=positive, default=10)
    parser.add_argument("--remat", choices=REMAT, default="dots")
    default = [*PYTORCH, *OURS]
    parser.add_argument("--variants", nargs="+", choices=[*default, *ON_GPU], default=default)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.rows, options.length, options.steps
    if options.one in OURS:
        lm = preset(options.preset, dtype=OURS[options.one], remat=options.remat)
        return print(json.dumps(of_jax(lm, *size)))
    if options.one:
        variant = {**PYTORCH, **ON_GPU}[options.one]
        return print(json.dumps(of_pytorch(preset(options.preset), *size, variant)))
    first = None
    print("| variant | tokens/s | ratio |\n| --- | ---: | ---: |")
    for name in options.variants:
        command = [sys.executable, *sys.argv, "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"| {name} | {reason[:60]} | |", flush=True)
            continue
        rate = json.loads(done.stdout.splitlines()[-1])[0]
        first = first or rate
        print(f"| {name} | {format_number(rate)} | {rate / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
