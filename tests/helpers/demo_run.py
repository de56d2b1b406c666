"""A finished run of the quickstart that nothing was trained for: its parameters are random."""

import json
from pathlib import Path
from typing import Any

import jax
from etils import epath

import undo_jax
from undo_jax.data.tokenizer_files import describe
from undo_jax.runner.load_experiment import load
from undo_jax.store import artifacts, snapshots
from undo_jax.store.artifacts import Artifact
from undo_jax.store.param_checkpoint import wait_until_saved
from undo_jax.workdir.provenance import describe_run

FILE = str(Path(undo_jax.__file__).parent.parent / "experiments" / "quickstart.py")
PAPER: Any = load(FILE)
KEPT = 10  # the step of the attack that is kept, beside the last
LAST = 20
MODELS = {  # name: role, alpha
    "base": ("base", None),
    "unlearn-only": ("unlearned", None),
    "UNDO α=0.6": ("distilled", 0.6),
    "Unlearn-and-Distill": ("distilled", None),
    "oracle": ("oracle", None),
}
RATES = (0.001, 0.01)
COMMAND = (
    f"undo-jax run --relearn.keep_at 10 --cache-teachers {FILE} --workdir w --noise.alphas 0.6"
)


def random_params(seed: int) -> Any:
    """Parameters with which texts vary, and end."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(PAPER.model.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draw = [0.5 * jax.random.normal(k, w.shape) for k, w in zip(keys, leaves, strict=True)]
    params = jax.tree.unflatten(tree, draw)
    for name in ("after_attention", "after_mlp"):
        params["layers"][name]["norm"] += 5
    return params


def score(model: int, rate: float, step: int) -> float:
    """The forget score of a model under attack: the larger rate is the stronger from step 10 on."""
    return round(
        0.1 * model + step / 100 + (0.05 if (rate == RATES[1]) == (step >= KEPT) else 0), 4
    )


def write_run(folder: Path, kept: bool = True, end_retain: float = 0.85) -> Path:
    """A workdir with all models, of which all but the base are attacked; `kept`: step 10, too."""
    workdir = epath.Path(folder)
    entries, owners = [], []
    setting, lm = PAPER.setting, PAPER.model
    about = {"tokenizer": describe(setting.get_tokenizer())}
    for i, (name, (role, alpha)) in enumerate(MODELS.items()):
        stage = {"base": "pretrain", "oracle": "pretrain", "unlearned": "unlearn"}.get(
            role, "distill"
        )
        parts = {stage: None, "setting": setting, "model": lm}
        artifact = Artifact(workdir, stage, name, 0, parts, about=about)
        more = {"recovered": True} if role == "distilled" else {}
        artifacts.prepare_folder(artifact)
        artifacts.save_artifact(
            artifact, random_params(i), {"retain": 0.9, "forget": 0.1 * i}, **more
        )
        attacks = [_attack(workdir, name, i, kept, end_retain)] if role != "base" else []
        entries.append({
            "model": name, "seed": 0, "artifact": artifact.folder.name, "role": role,
            "alpha": alpha, "unlearned": None, "oracle": None, "attacks": attacks,
        })  # fmt: skip
        owners += [{"artifact": a, "model": name} for a in (artifact.folder.name, *attacks)]
    metrics = {
        name: {"label": metric.label, "higher_is_better": True, "unit": ""}
        for name, metric in setting.metrics.items()
    }
    listed = {"name": "quickstart", "metrics": metrics, "headline": ["retain", "forget"],
              "models": entries, "artifacts": owners, "runs": [describe_run(COMMAND)]}  # fmt: skip
    (workdir / "experiment-quickstart.json").write_text(json.dumps(listed))
    return folder


def _attack(workdir: epath.Path, name: str, i: int, kept: bool, end_retain: float) -> str:
    """The folder of an attack with two learning rates."""
    parts = {"relearn": {"attack": {"name": "forget"}}, "setting": PAPER.setting}
    artifact = Artifact(workdir, "relearn", f"{name} by forget", 0, {**parts, "model": PAPER.model})
    artifacts.prepare_folder(artifact)
    lines = [
        {"step": step, "eval": {"retain": retain, "forget": score(i, rate, step)},
         "attack": "forget", "learning_rate": rate}
        for rate in RATES
        for step, retain in ((0, 0.85), (5, 0.85), (KEPT, 0.85), (LAST, end_retain))
    ]  # fmt: skip
    (artifact.folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    tags = {"attack": "forget", "learning_rate": RATES[1]}
    if kept:
        scores = {"retain": 0.85, "forget": score(i, RATES[1], KEPT)}
        snapshots.save_snapshot(artifact, KEPT, random_params(100 + i), scores, **tags)
    end = {"retain": end_retain, "forget": score(i, RATES[1], LAST)}
    artifacts.save_artifact(artifact, random_params(200 + i), end, steps=LAST, **tags)
    wait_until_saved()
    return artifact.folder.name
