"""A distillation step here and in PyTorch: `python benchmarks/peer.py --preset 0.1B --rows 4`.

The same model, batch and work in both (teacher forward, student forward and backward, clip, AdamW),
on random tokens; each variant in a process of its own, one after another. PyTorch's are what a good
user would write with transformers, whose Gemma-2 has eager attention only: fp32 (the official
code's numerics), bf16 autocast, and that compiled. Ratios are to the first. Needs undo-jax[test].
"""

import argparse
import json
import subprocess
import sys
import time
from typing import Any

import jax

from undo_jax import bench
from undo_jax.fit.step import distillation
from undo_jax.log import short
from undo_jax.mesh import MeshShape, make_mesh
from undo_jax.models.gemma2 import PRESETS, preset
from undo_jax.models.transformer import Transformer
from undo_jax.optim import AdamW
from undo_jax.train import Training

PYTORCH = {  # name: (autocast to bf16, compiled)
    "PyTorch fp32": (False, False),
    "PyTorch bf16": (True, False),
    "PyTorch bf16, compiled": (True, True),
}
OURS = {"undo_jax fp32": "float32", "undo_jax bf16": "bfloat16"}
LEARNING_RATE = 1e-5


def of_pytorch(lm: Transformer, rows: int, length: int, steps: int, variant: str) -> float:
    """Tokens a second."""
    import torch
    import transformers

    autocast, compiled = PYTORCH[variant]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    describe: Any = transformers.Gemma2Config
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
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    make: Any = transformers.Gemma2ForCausalLM
    teacher, student = make(theirs).to(device).eval(), make(theirs).to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), LEARNING_RATE, fused=device == "cuda")
    tokens = torch.randint(0, lm.vocabulary, (rows, length), device=device)

    def loss() -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            with torch.no_grad():
                wanted = teacher(tokens).logits
            logits = student(tokens).logits
        log_p, log_t = (z.float().log_softmax(-1).flatten(0, 1) for z in (logits, wanted))
        kl_div = torch.nn.functional.kl_div
        return kl_div(log_p, log_t, log_target=True, reduction="batchmean")

    loss = torch.compile(loss) if compiled else loss

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
    return rows * length / run(steps)


def of_jax(lm: Transformer, rows: int, length: int, steps: int) -> float:
    """Tokens a second."""
    training = Training(100, rows, AdamW(LEARNING_RATE), eval_every=50)
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    speed = bench.measure(distillation(lm, lm, training, length), mesh, steps)
    return rows * length / speed.seconds


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="0.1B")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--remat", default="dots")
    parser.add_argument(
        "--variants", nargs="+", choices=[*PYTORCH, *OURS], default=[*PYTORCH, *OURS]
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.rows, options.length, options.steps
    if options.one in OURS:
        lm = preset(options.preset, dtype=OURS[options.one], remat=options.remat)
        return print(json.dumps(of_jax(lm, *size)))
    if options.one:
        return print(json.dumps(of_pytorch(preset(options.preset), *size, options.one)))
    first = None
    print("| variant | tokens/s | ratio |\n| --- | ---: | ---: |")
    for name in options.variants:
        command = [sys.executable, *sys.argv, "--one", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            print(f"| {name} | {reason[:60]} | |", flush=True)
            continue
        rate = json.loads(done.stdout.splitlines()[-1])
        first = first or rate
        print(f"| {name} | {short(rate)} | {rate / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
