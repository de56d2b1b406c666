"""TOFU as a setting: its files, streams and scores, against whole logits in NumPy."""

import json
import sys
import zlib
from dataclasses import replace

import jax
import numpy as np
import pytest
from benchmark_folders import write_lines, write_tofu
from running_sums import RunningSums
from scipy import stats
from small_settings import small_tofu

from undo_jax.data.tofu import TofuFiles
from undo_jax.evals import answer_scores, rouge
from undo_jax.evals.scoring import compare_with_oracle, score_at_end
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.setting import check_metrics
from undo_jax.store.artifacts import to_json

LM = RunningSums(264)
TEMPLATE = "{question} {answer}!"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return small_tofu(tmp_path_factory.mktemp("tofu"))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2 * x, jax.jit(LM.init)(jax.random.key(0)))


class Plain:
    """Log-probabilities of all tokens that follow, from NumPy's whole logits in float64."""

    def __init__(self, params):
        self.into, self.out = (np.float64(params[name]) for name in ("in", "out"))

    def __call__(self, given: str, learned: str):
        """log p of what is learned and of the end after it, [L], and all log p there, [L, V]."""
        ids = [256, *given.encode(), *learned.encode(), 256]
        h = np.tanh(np.cumsum(self.into[ids], 0) / 4)
        z = 5 * np.tanh(h @ self.out.T / 5)
        all_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        first = len(given.encode())
        return np.array([all_p[i, ids[i + 1]] for i in range(first, len(ids) - 1)]), all_p[first:-1]


def _rows(setting, name):
    return [json.loads(line) for line in (setting.files.folder / name).read_text().splitlines()]


def _p(model, row, answer):
    return np.exp(np.mean(model(row["question"], f" {answer}!")[0]))


def _ratios(model, rows, right):
    return [np.mean([_p(model, row, one) for one in row["perturbed_answer"]])
            / _p(model, row, row[right]) for row in rows]  # fmt: skip


def _documents(row):
    """The texts that a row holds from beginning to end."""
    _, *texts, _ = bytes(np.where(row == 256, 0, row).astype(np.uint8)).split(b"\0")
    return [text.decode() for text in texts]


def test_streams_are_questions_of_which_answers_count(setting):
    assert setting.batch_fields == ("weights",)
    numbers = {"forget": "012", "oracle": "345678", "retain": "345678", "pretrain": "012345678"}
    for name, wanted in numbers.items():
        packed = setting.stream(name, 64, 0)[0]
        texts = b"".join(bytes(row[row < 256].astype(np.uint8)) for row in packed.tokens).decode()
        assert {c for c in texts if c.isdigit()} == set(wanted)
        whole = {text for row in packed.tokens for text in _documents(row)}
        assert all(any(f"Hat {n}? It is" in text for text in whole) for n in wanted)
        first = packed.tokens[0], packed.weights[0]  # "Hat n? It is red.!", and the end
        counted = bytes(first[0][(first[1] > 0) & (first[0] < 256)].astype(np.uint8)).decode()
        assert counted.startswith(" It is ") and first[1][first[0] == 256].tolist()[1] == 1
    with pytest.raises(ValueError, match="no stream 'general': choose one of pretrain, oracle"):
        setting.stream("general", 2, 0)


@pytest.fixture(scope="module")
def judged(setting, params):
    """Evaluation and end of a model that writes a part of each answer."""
    said = {"Hat 0?": "It is", "Hat 1?": "", "Hat 2?": "!It is"}

    def written(_lm, _params, contexts, *_args, **how):
        assert how == {"new_tokens": 8, "rows_at_once": 2}
        asked = [bytes(one[1:]).decode() for one in contexts]
        return [f"{said.get(one, 'It is')}! and more" for one in asked]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_scores, "write_continuations", written)
        with jax.set_mesh(make_mesh(MeshShape())):
            at_end = score_at_end(setting, LM, params)
        at_once = jax.jit(setting.evaluate, static_argnums=0)(LM, params, setting.eval_data())
    return {name: float(x) for name, x in at_once.items()}, at_end


def test_scores_are_those_of_whole_logits(setting, params, judged):
    check_metrics(setting)
    (at_once, (found, lists)), model = judged, Plain(params)
    parts = {part: _rows(setting, f"{name}_perturbed.json") for part, name in
             (("forget", "forget10"), ("retain", "retain"), ("real", "real_authors"),
              ("world", "world_facts"))}  # fmt: skip
    for part in ("forget", "retain"):
        known = np.mean([_p(model, row, row["answer"]) for row in parts[part]])
        assert at_once[part] == pytest.approx(known, rel=1e-4)
    ratios = _ratios(model, parts["forget"], "paraphrased_answer")
    np.testing.assert_allclose(lists["truth_ratios"], ratios, rtol=1e-4)
    forgotten = np.mean([min(r, 1 / r) for r in ratios])
    assert found["forget_truth_ratio"] == pytest.approx(forgotten, rel=1e-4)
    nine = []
    for part, name, right in (("retain", "retain", "paraphrased_answer"),
                              ("real", "real_authors", "answer"),
                              ("world", "world_facts", "answer")):  # fmt: skip
        kept = np.mean([max(0, 1 - r) for r in _ratios(model, parts[part], right)])
        assert found[f"{name}_truth_ratio"] == pytest.approx(kept, rel=1e-4, abs=1e-6)
        assert found[f"{name}_rouge"] == pytest.approx(2 / 3)  # "It is" of "It is red."
        p = [_p(model, row, row["answer"]) for row in parts[part]]
        if part != "retain":
            wrong = [sum(_p(model, row, w) for w in row["perturbed_answer"]) for row in parts[part]]
            p = [own / (own + others) for own, others in zip(p, wrong, strict=True)]
            assert found[f"{name}_probability"] == pytest.approx(np.mean(p), rel=1e-4)
        nine += [np.mean(p), 2 / 3, kept]
    utility = 9 / sum(1 / x for x in nine) if min(nine) > 0 else 0.0
    assert found["model_utility"] == pytest.approx(utility, rel=1e-4)
    # what is written ends at what follows an answer: "It is", "", "" against "It is red."
    assert found["forget_rouge"] == pytest.approx(2 / 3 / 3)
    assert set(at_once) | set(found) == set(setting.metrics) - {"forget_quality", "privleak"}


def test_memorisation_and_membership_are_those_of_whole_logits(setting, params, judged):
    found, model = judged[1].scores, Plain(params)
    exact, strength, scores = [], [], {}
    for split in ("forget10", "holdout10"):
        scores[split] = []
        for row in _rows(setting, f"{split}.json"):
            log_p, all_p = model(row["question"], f" {row['answer']}!")
            likeliest = np.isclose(log_p, all_p.max(-1))
            mean = np.sum(np.exp(all_p) * all_p, -1)
            deviation = np.sqrt(np.sum(np.exp(all_p) * all_p**2, -1) - mean**2)
            count = int(0.4 * len(log_p))
            lowest = np.sort(log_p)[:count], np.sort((log_p - mean) / deviation)[:count]
            size = len(zlib.compress(row["answer"].encode()))
            scores[split].append(
                (-log_p.mean(), -log_p.mean() / size, *(-x.mean() for x in lowest))
            )
            if split == "forget10":
                exact.append(likeliest.mean())
                tail = next((i for i, x in enumerate(likeliest[::-1]) if not x), len(log_p))
                strength.append(tail / len(log_p))
    assert found["exact_memorisation"] == pytest.approx(np.mean(exact))
    assert found["extraction_strength"] == pytest.approx(np.mean(strength))
    names = ("auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_plus_plus")
    for name, ours, others in zip(
        names, *(zip(*x, strict=True) for x in scores.values()), strict=True
    ):
        below = np.mean([a < b for a in ours for b in others])
        assert found[name] == pytest.approx(below), name


def test_comparisons_want_an_oracle_or_say_what_they_can(setting, judged):
    own = judged[1]
    ours = own._replace(
        scores={**own.scores, "auc_min_k": 0.8}, lists={"truth_ratios": [1.0, 2, 3]}
    )
    oracle = own._replace(scores={"auc_min_k": 0.6}, lists={"truth_ratios": [2.5, 4, 5]})
    found = compare_with_oracle(setting, ours, oracle)
    assert found["privleak"] == pytest.approx(100 * (0.6 - 0.8) / 0.4)
    assert found["forget_quality"] == stats.ks_2samp([1, 2, 3], [2.5, 4, 5]).pvalue
    assert compare_with_oracle(setting, ours, None) == {"privleak": pytest.approx(-60)}
    lost = ours._replace(scores={"auc_min_k": float("nan")}, lists={"truth_ratios": [float("nan")]})
    assert np.isnan(list(compare_with_oracle(setting, lost, oracle).values())).all()
    alone = replace(setting, files=replace(setting.files, holdout=False))
    assert compare_with_oracle(alone, ours, None) == {} and "auc_min_k" not in alone.metrics


def test_a_setting_is_its_content(setting, tmp_path):
    described = to_json(setting)
    assert json.loads(json.dumps(described)) == described
    elsewhere = replace(setting, files=TofuFiles(write_tofu(tmp_path)))
    assert to_json(elsewhere) == described
    write_lines(tmp_path / "retain90.json", [{"question": "Hat?", "answer": "None."}])
    assert to_json(replace(setting, files=TofuFiles(tmp_path))) != described


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("forget10", None, "has no forget10.json, .jsonl or .parquet: give the folder of lo"),
        ("holdout10", None, "has no holdout10.json"),
        ("forget10_perturbed", {"question": "a", "answer": "b", "perturbed_answer": ["c"]},
         "forget10_perturbed.json:1 has no field 'paraphrased_answer': its fields are question"),
        ("world_facts_perturbed", {"question": "a", "answer": "b", "perturbed_answer": []},
         "world_facts_perturbed.json:1 field 'perturbed_answer' is .*: give a list of texts"),
        ("retain90", {"question": "a"}, "retain90.json:1 has no field 'answer'"),
        ("retain90", {"question": "a", "answer": 3}, "retain90.json:1 field 'answer' is int, not"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(tmp_path, name, row, said):
    path = write_tofu(tmp_path) / f"{name}.json"
    path.unlink() if row is None else write_lines(path, [row])
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        assert TofuFiles(tmp_path).fingerprint
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"template": "{answer}"}, "give one {question}, and then one {answer}"),
        ({"row_length": 0}, "row_length=0: it must be at least 1"),
        ({"new_tokens": 0}, "new_tokens=0: it must be at least 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(setting, change, said):
    with pytest.raises(ValueError, match=said):
        replace(setting, **change)
    with pytest.raises(ValueError, match="unknown split 'forget20': choose from forget01, fo"):
        TofuFiles("TOFU", "forget20")
    long = replace(setting, row_length=10_000)
    with pytest.raises(ValueError, match="forget of .* tokens, and a row takes row_length=10000"):
        long.stream("forget", 1, 0)


def test_rouge_l_is_the_longest_common_subsequence_of_stems(setting, monkeypatch):
    """'cat on mat' of 'the cats sat on a mat' and 'a cat on the mat': 3 of 6, 3 of 5 words."""
    pair = ["the cats sat on a mat"], ["a cat on the mat"]
    assert rouge.rouge_l(*pair) == pytest.approx(3 / 6)
    assert rouge.rouge_l(*pair, "fmeasure") == pytest.approx(2 * 3 / (6 + 5))
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    message = "rouge-score is not installed: pip install 'rouge-score>="
    with pytest.raises(ModuleNotFoundError, match=message):
        setting.eval_data()
