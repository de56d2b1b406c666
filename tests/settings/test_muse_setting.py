"""MUSE as a setting: its files, streams and scores, against whole logits in NumPy."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from benchmark_folders import COLOURS, write_lines, write_muse
from running_sums import RunningSums
from small_settings import small_muse

from undo_jax.data.muse import MuseFiles
from undo_jax.evals import answer_scores
from undo_jax.evals.scoring import ModelScores, compare_with_oracle, score_at_end
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.setting import check_metrics
from undo_jax.store.artifacts import to_json

LM = RunningSums(264)
SHOWN = "Question: Hat 6?\nAnswer: grey\n\nQuestion: Hat 7?\nAnswer: pink\n\n"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return small_muse(tmp_path_factory.mktemp("muse"))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2 * x, jax.jit(LM.init)(jax.random.key(0)))


def _log_p(params, given, learned):
    """log p of what is learned, and of all tokens there, from NumPy's whole logits."""
    ids = [256, *given.encode(), *learned.encode()]
    h = np.tanh(np.cumsum(np.float64(params["in"])[ids], 0) / 4)
    z = 5 * np.tanh(h @ np.float64(params["out"]).T / 5)
    all_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    first = len(given.encode())
    return np.array([all_p[i, ids[i + 1]] for i in range(first, len(ids) - 1)]), all_p[first:-1]


def _asked(number):
    return f"{SHOWN}Question: Hat {number}?\nAnswer:"


def test_streams_are_whole_texts(setting):
    assert setting.batch_fields == ()
    numbers = {"forget": "01", "oracle": "234", "retain": "23", "pretrain": "01234"}
    for name, wanted in numbers.items():
        rows = setting.stream(name, 64, 0)[0]
        texts = b"".join(bytes(row[row < 256].astype(np.uint8)) for row in rows).decode()
        assert {c for c in texts if c.isdigit()} == set(wanted)
    with pytest.raises(ValueError, match="no stream 'general': choose one of pretrain, oracle"):
        setting.stream("general", 2, 0)


def test_scores_are_those_of_whole_logits(setting, params, monkeypatch):
    check_metrics(setting)
    asked = []

    def written(_lm, _params, contexts, *_args, new_tokens, rows_at_once):
        asked.append((new_tokens, [bytes(one[1:]).decode() for one in contexts]))
        return [" green, and\n\nmore" if new_tokens == 32 else " 0 is red, no"] * len(contexts)

    monkeypatch.setattr(answer_scores, "write_continuations", written)
    with jax.set_mesh(make_mesh(MeshShape())):
        found = score_at_end(setting, LM, params).scores
    at_once = jax.jit(setting.evaluate, static_argnums=0)(LM, params, setting.eval_data())
    for part, numbers in (("forget", (0, 1)), ("retain", (2, 3))):
        p = [np.exp(np.mean(_log_p(params, _asked(n), f" {COLOURS[n]}")[0])) for n in numbers]
        assert float(at_once[part]) == pytest.approx(np.mean(p), rel=1e-4)
    # "green" alone is the answer to 2; of the texts' first 12 bytes " is red, and" and
    # " is blue, an" one has 2 of 3 and one 1 of 3 words with "0 is red no", which has 4
    assert (found["retain_rouge"], found["forget_rouge"]) == (0.5, 0.0)
    assert found["verbatim_rouge"] == pytest.approx((2 * 2 / (3 + 4) + 2 * 1 / (3 + 4)) / 2)
    assert asked == [
        (32, [_asked(2), _asked(3)]),
        (32, [_asked(0), _asked(1)]),
        (12, ["The hat of 0", "The hat of 1"]),
    ]
    exact, losses = [], {}
    for n in (0, 1, 5, 6):
        text = f"The hat of {n} is {COLOURS[n]}, and so it was."
        losses[n] = -_log_p(params, "", text[:20])[0].mean()
        log_p, all_p = _log_p(params, text[:12], text[12:])
        exact += [np.isclose(log_p, all_p.max(-1)).mean()] if n < 2 else []
    assert found["exact_memorisation"] == pytest.approx(np.mean(exact))
    below = np.mean([losses[a] < losses[b] for a in (0, 1) for b in (5, 6)])
    assert found["auc_loss"] == pytest.approx(below)
    assert set(at_once) | set(found) == set(setting.metrics) - {"privleak"}


def test_privleak_is_beside_the_oracle_or_chance(setting):
    own, oracle = (ModelScores({"auc_min_k": area}, {}) for area in (0.9, 0.2))
    assert compare_with_oracle(setting, own, oracle) == {
        "privleak": pytest.approx(100 * (0.2 - 0.9) / 0.8)
    }
    assert compare_with_oracle(setting, own, None) == {"privleak": pytest.approx(-80)}


def test_a_setting_is_its_content(setting, tmp_path):
    described = to_json(setting)
    assert json.loads(json.dumps(described)) == described
    files = MuseFiles(write_muse(tmp_path), shots=2)
    assert to_json(replace(setting, files=files)) == described
    for change in ({"shots": 1}, {"retain": ("retain1",)}, {"membership": "raw"}):
        changed = to_json(replace(setting, files=replace(files, **change)))
        assert (changed != described) == (change != {"membership": "raw"})  # the same texts here


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("raw/retain2", None, "raw has no retain2.json, .jsonl or .parquet: give the folder of mu"),
        ("privleak/holdout", [{"story": "a"}], "holdout.jsonl:1 has no field 'text': its fields a"),
        ("verbmem/forget", [{"prompt": "a"}], "forget.jsonl:1 has no field 'gt'"),
        ("knowmem/forget_qa", [{"question": "a", "answer": 1}], "field 'answer' is int, not text"),
        ("knowmem/forget_qa_icl", [{"question": "a", "answer": "b"}], "shots=2, but knowmem/forge"),
        ("raw/forget", [], "raw/forget.jsonl holds no texts"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, rows, said):
    path = write_muse(tmp_path) / f"{name}.jsonl"
    path.unlink() if rows is None else write_lines(path, rows)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        assert MuseFiles(tmp_path, shots=2).fingerprint
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"retain": ()}, "retain is empty: name a split of raw at least"),
        ({"membership": "text"}, "unknown membership 'text': choose from privleak, raw"),
        ({"shots": -1}, "shots=-1: it must be at least 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(setting, change, said):
    with pytest.raises(ValueError, match=said):
        replace(setting.files, **change)
    with pytest.raises(ValueError, match="longest=0: it must be at least 1"):
        replace(setting, longest=0)
    long = replace(setting, row_length=10_000)
    with pytest.raises(ValueError, match="raw/forget of .* tokens, and a row takes row_length=100"):
        long.stream("forget", 1, 0)
