"""A workdir's logs, whose numbers are known."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from undo_jax.report import Report, analyse, read_logs
from undo_jax.retain_bound import MIN_RETAIN

ACCURACY = {"label": "accuracy on × and ÷", "higher_is_better": True}
CROSS_ENTROPY = {"label": "cross entropy on Korean", "higher_is_better": False}
STEPS = (0, 10, 20, 30)
LOSSES = {10: 2.0, 20: 0.5, 30: 0.125}  # of a distillation
Curves = Mapping[tuple[str, float], tuple[float | None, ...]]


STAGES = {"base": "pretrain", "oracle": "pretrain", "unlearn-only": "unlearn"}  # of what they are
ORDER = ("pretrain", "import", "unlearn", "noise", "distill", "relearn")  # as they are made
ROLES = {"unlearn": "unlearned", "distill": "distilled", "noise": "student", "import": "base"}


class Workdir:
    """Writes logs in the format of the contract."""

    def __init__(
        self, root: Path, forget: dict[str, object] = ACCURACY, name: str = "known"
    ) -> None:
        self.root, self.forget, self.name = root, forget, name
        self.others: dict[str, Any] = {}  # metrics beside those of the headline
        self.artifacts: list[dict[str, Any]] = []  # with "stage" and, of a model, its "entry"

    @property
    def file(self) -> Path:
        return self.root / f"experiment-{self.name}.json"

    def add(
        self,
        stage: str,
        model: str,
        seed: int | None = 0,
        *,
        alpha: float | None = None,
        recovered: bool | None = None,
        steps: float = 100,
        flops: float = 1000.0,
        scores: tuple[float, float] | None = (0.9, 0.1),
        lines: list[dict[str, object]] | None = None,
        finished: bool = True,
        role: str | None = None,
        unlearned: str | None = "unlearn-only",
        oracle: str | None = "oracle",
        settings: dict[str, object] | None = None,
        listed: bool | None = None,
        made_from: Path | None = None,
    ) -> Path:
        """An artifact and, unless it is a student on its way, a model of the experiment.

        It is held against models of these names and of its own seed, or else of any.
        """
        known = len(list(self.root.glob("*-seed*")))  # of other experiments, too
        folder = self.root / f"{stage}-{model}-seed{seed}-{known:08x}"
        folder.mkdir(parents=True)
        config = {"stage": stage, "model": "draw", "seed": seed}
        upstream = [] if made_from is None else [made_from.name.rpartition("-")[2]]
        config |= {"fingerprint": "ab", "upstream": upstream, "config": {stage: settings or {}}}
        (folder / "config.json").write_text(json.dumps(config))
        if lines is None and stage == "distill":
            lines = [{"step": step, "loss": loss} for step, loss in LOSSES.items()]
        text = "\n".join(json.dumps(line) for line in lines or [])
        (folder / "metrics.jsonl").write_text(text)
        if finished:
            summary = {"steps": steps, "tokens": 10 * steps, "flops": flops}
            summary |= {"recovered": recovered}
            measured = scores and {"retain": scores[0], "forget": scores[1]}
            summary |= {"eval": measured or {}}
            (folder / "summary.json").write_text(json.dumps(summary))
        made: dict[str, Any] = {"artifact": folder.name, "model": model, "stage": stage}
        role = role or ROLES.get(stage, "oracle" if model == "oracle" else "base")
        if listed or (listed is None and stage not in ("noise", "relearn")):
            entry = {"model": model, "seed": seed, "artifact": folder.name, "role": role}
            held = {"unlearned": None if role in ("base", "oracle") else unlearned}
            held |= {"oracle": oracle}
            made["entry"] = {**entry, "alpha": alpha, **held, "attacks": []}
        self.artifacts.append(made)
        self.save()
        return folder

    def attack(
        self,
        model: str,
        seed: int | None = 0,
        *,
        alpha: float | None = None,
        finished: bool = True,
        curves: Curves,
        setup: dict[str, object] | None = None,
        control: bool = False,
        retain: float = 0.9,
    ) -> Path:
        """An attack on a model, which becomes one where it is none: by default a student.

        `setup` is what its config.json says of the attack; its metric has the same scores.
        """
        metric = str((setup or {}).get("metric", "forget"))
        if self.entry(model, seed) is None:
            stage = STAGES.get(model, "distill" if "UNDO" in model else "noise")
            scores = None if stage == "noise" else (0.9, 0.1)
            self.add(stage, model, seed, alpha=alpha, scores=scores, listed=True)
        lines: list[dict[str, object]] = []
        for (data, rate), scores in curves.items():
            who = {"attack": data, "learning_rate": rate}
            for step, score in zip(STEPS, scores, strict=True):
                lines.append({"step": step, "loss": 1.0, **who})
                scores_then = {"retain": retain, "forget": score, metric: score}
                lines.append({"step": step, "eval": scores_then, **who})
        made = self.add(
            "relearn",
            model,
            seed,
            lines=lines,
            finished=finished,
            settings=setup and {"attack": setup},
        )
        self.artifacts[-1]["control"] = control
        return self.attacked(model, seed, made)

    def attacked(self, model: str, seed: int | None, folder: Path) -> Path:
        """It is an attack on that model."""
        self.artifacts[-1]["on"] = model, seed
        self.save()
        return folder

    def entry(self, model: str | None, seed: int | None = None) -> dict[str, Any] | None:
        """The model's entry: that of the seed, or else the first."""
        own = [a["entry"] for a in self.artifacts if "entry" in a and a["model"] == model]
        return next((entry for entry in own if entry["seed"] == seed), None)

    def held(self, model: str | None, seed: int | None) -> str | None:
        """The folder of a model that another one is held against."""
        own = [a["entry"] for a in self.artifacts if "entry" in a and a["model"] == model]
        same = [entry for entry in own if entry["seed"] == seed]
        return next((entry["artifact"] for entry in same or own), None)

    def content(self) -> dict[str, Any]:
        """Of the experiment's file."""
        models = []
        for entry in (a["entry"] for a in self.artifacts if "entry" in a):
            who = entry["model"], entry["seed"]
            own = entry["artifact"] if entry["role"] == "unlearned" else None
            held = {"unlearned": own or self.held(entry["unlearned"], entry["seed"])}
            held |= {"oracle": self.held(entry["oracle"], entry["seed"])}
            on_it = [a for a in self.artifacts if a.get("on") == who]
            kinds = {
                kind: [a["artifact"] for a in on_it if a.get("control", False) is control]
                for kind, control in (("attacks", False), ("controls", True))
            }
            models.append({**entry, **held, **kinds})
        retain = {"label": "accuracy on + and −", "higher_is_better": True, "unit": ""}
        metrics = {"retain": retain, "forget": {"unit": "", **self.forget}, **self.others}
        metrics = {"metrics": metrics, "headline": ["retain", "forget"]}
        order = [*dict.fromkeys([*ORDER, *(a["stage"] for a in self.artifacts)])]
        made = sorted(self.artifacts, key=lambda a: order.index(a["stage"]))
        artifacts = [{"artifact": a["artifact"], "model": a["model"]} for a in made]
        return {"name": self.name, **metrics, "models": models, "artifacts": artifacts}

    def save(self) -> None:
        self.file.write_text(json.dumps(self.content()))

    def report(self, min_retain: float = MIN_RETAIN) -> Report:
        return analyse(read_logs(self.root, self.name, min_retain))
