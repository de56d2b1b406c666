"""TOFU and MUSE from a folder to a report, by the command line, with an oracle and without."""

import json

import jax
import numpy as np
import pytest
from benchmark_folders import write_muse, write_tofu
from scipy import stats

from undo_jax.api import open_run
from undo_jax.cli import main as cli

EXPERIMENT = """
from undo_jax.attacks.forget import forget
from undo_jax.data.muse import MuseFiles
from undo_jax.data.tofu import TofuFiles
from undo_jax.data.tokenizers import Bytes
from undo_jax.runner.experiment import Experiment
from undo_jax.methods.graddiff import graddiff
from undo_jax.models.gemma2 import preset
from undo_jax.training.optim import AdamW
from undo_jax.recipes.pretrain import Pretrain
from undo_jax.recipes.unlearn import Unlearn
from undo_jax.settings.muse import Muse
from undo_jax.settings.tofu import Tofu
from undo_jax.training.train_step import Training

lm = preset("2B", layers=1, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8,
            vocabulary={vocabulary}, dtype="float32")
few = Training(3, 8, AdamW(3e-2), eval_every=3)
base = Pretrain(lm, Training(20, 8, AdamW(3e-2, warmup=2), eval_every=20))
models = {{"base": base, "unlearned": Unlearn(base, few, loss=graddiff)}}
if {oracle}:
    models["oracle"] = Pretrain(lm, Training(20, 8, AdamW(3e-2, warmup=2), eval_every=20),
                                stream="oracle")
experiment = Experiment(
    name="{name}", setting={setting}, models=models, oracle="oracle" if {oracle} else None,
    attacks=(forget(few, (1e-2,)),), attacked=("unlearned",),
)
"""
TOFU = "Tofu(TofuFiles({folder!r}), Bytes(), row_length=48, new_tokens=6)"
MUSE = "Muse(MuseFiles({folder!r}, shots=1), Bytes(), row_length=48, text_tokens=6)"


def _run(root, name, setting, folder, oracle, vocabulary=264):
    file = root / f"{name}.py"
    said = {"setting": setting.format(folder=str(folder)), "oracle": oracle}
    file.write_text(EXPERIMENT.format(name=name, vocabulary=vocabulary, **said))
    cli.main(["run", str(file), "--workdir", str(root / "runs")])
    text = (root / "runs" / f"report-{name}" / "summary.md").read_text()
    header, _, *rows = text.split("## Other scores\n\n")[1].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    return file, {row[0]: dict(zip(cells[0], row, strict=True)) for row in cells[1:]}


def _entries(root, name):
    listed = json.loads((root / "runs" / f"experiment-{name}.json").read_text())["models"]
    return {entry["model"]: entry for entry in listed}


def _truth_ratios(model, folder):
    """From whole logits in NumPy, with the embedding of each token from the model itself."""
    table = np.float64(model.lm.table(model.params))

    def probability(question, answer):
        given = f"Question: {question}\nAnswer:".encode()
        ids = np.array([[256, *given, *f" {answer}".encode(), 256]])
        z = np.float64(model.lm.hidden(model.params, jax.numpy.asarray(ids[:, :-1])))[0] @ table.T
        z = model.lm.softcap * np.tanh(z / model.lm.softcap)
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        asked = range(len(given), ids.shape[1] - 1)
        return np.exp(np.mean([log_p[i, ids[0, i + 1]] for i in asked]))

    rows = map(json.loads, (folder / "forget10_perturbed.json").read_text().splitlines())
    return [
        np.mean([probability(row["question"], one) for one in row["perturbed_answer"]])
        / probability(row["question"], row["paraphrased_answer"])
        for row in rows
    ]


@pytest.mark.slow
def test_tofu_from_a_folder_to_a_report(tmp_path):
    folder = write_tofu(tmp_path / "tofu")
    file, table = _run(tmp_path, "tofu", TOFU, folder, True)
    run, entries = open_run(tmp_path / "runs", file), _entries(tmp_path, "tofu")
    with jax.set_mesh(run.place.mesh):
        ratios = {name: _truth_ratios(run[name], folder) for name in run}
    areas = {}
    for name, entry in entries.items():
        summary = json.loads((tmp_path / "runs" / entry["artifact"] / "summary.json").read_text())
        np.testing.assert_allclose(summary["lists"]["truth_ratios"], ratios[name], rtol=1e-3)
        areas[name] = summary["eval"]["auc_min_k"]
    for name, entry in entries.items():
        quality = stats.ks_2samp(ratios[name], ratios["oracle"]).pvalue
        leak = 100 * (areas["oracle"] - areas[name]) / max(1 - areas["oracle"], 1e-12)
        told = entry["compared"]
        assert told == {"forget_quality": pytest.approx(quality), "privleak": pytest.approx(leak)}
        assert table[name]["forget quality"] == f"{quality:.2f}"
        assert table[name]["PrivLeak (%)"] == f"{leak:.2f}".replace("-0.00", "0.00")
    assert entries["oracle"]["compared"] == {"forget_quality": 1.0, "privleak": 0.0}
    assert table["base"]["model utility"] != "–"

    _, alone = _run(tmp_path, "alone", TOFU, folder, False)  # the models are there
    assert alone["base"]["forget quality"] == "–"
    against_chance = 100 * (0.5 - areas["base"]) / 0.5
    assert alone["base"]["PrivLeak (%)"] == f"{against_chance:.2f}".replace("-0.00", "0.00")


@pytest.mark.slow
def test_muse_from_a_folder_to_a_report(tmp_path):
    folder = write_muse(tmp_path / "muse")
    _, table = _run(tmp_path, "muse", MUSE, folder, True)
    areas = {}
    for name, entry in _entries(tmp_path, "muse").items():
        summary = json.loads((tmp_path / "runs" / entry["artifact"] / "summary.json").read_text())
        areas[name] = summary["eval"]["auc_min_k"]
    for name in areas:
        leak = 100 * (areas["oracle"] - areas[name]) / max(1 - areas["oracle"], 1e-12)
        assert float(table[name]["PrivLeak (%)"]) == pytest.approx(leak, abs=0.01)
        assert all(cell != "–" for cell in table[name].values())


def test_a_tokenizer_larger_than_the_table_is_refused(tmp_path, capsys):
    folder = write_tofu(tmp_path / "tofu")
    with pytest.raises(SystemExit, match="2"):
        _run(tmp_path, "small", TOFU, folder, True, vocabulary=256)
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.endswith("vocabulary=256, but the tokenizer makes 257 ids: set it to at least 257")
