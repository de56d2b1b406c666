"""Requests for log-likelihoods as rows: which share one, how they are padded, what comes back."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from undo_jax.cli import main as cli
from undo_jax.evals import requests
from undo_jax.evals.requests import Request, answers, batches, padded
from undo_jax.evals.served import Served
from undo_jax.models.gemma2 import preset
from undo_jax.ops import head
from undo_jax.runtime.mesh import MeshShape, make_mesh
from undo_jax.runtime.sharding import param_shardings

VOCABULARY = 40
LM = preset("2B", layers=2, width=16, feed_forward=16, heads=2, kv_heads=2, head_width=8,
            vocabulary=VOCABULARY, final_softcap=3, init_stddev=0.5, window=6)  # fmt: skip


def test_rows_have_few_lengths():
    sizes = [padded(n, 500) for n in (1, 32, 33, 49, 65, 97, 192, 193, 385, 400, 500)]
    assert sizes == [32, 32, 48, 64, 96, 128, 192, 256, 500, 500, 500]
    assert len({padded(n, 4096) for n in range(1, 4097)}) == 15
    assert padded(10, 24) == 24 and padded(24, 24) == 24


def _asked():
    """One context with four letters, a longer one of these, other lengths, and a long text."""
    random = np.random.default_rng(0)
    draw = lambda n: random.integers(1, VOCABULARY, n).tolist()  # noqa: E731
    context, long = draw(7), draw(70)
    letters = [Request(context, [letter]) for letter in (3, 4, 5, 6)]
    return [*letters, Request(context[:4], [*context[4:], 9]), Request(draw(2), draw(5)),
            Request([7], draw(40)), Request(long, [2, 3]), letters[1]]  # fmt: skip


def test_each_is_asked_once_and_letters_share_a_row():
    scored = _asked()
    made_batches = list(batches(scored, 4, reach=64))
    assert [batch.tokens.shape for batch in made_batches] == [(4, 64), (4, 48), (4, 32)]
    assert [batch.positions.shape[1] for batch in made_batches] == [2, 64, 8]
    assert sorted(index for batch in made_batches for index, *_ in batch.requests) == list(range(9))
    last = made_batches[-1]
    assert len({row for index, row, _ in last.requests if index in (0, 1, 2, 3, 4, 8)}) == 1
    for batch in made_batches:
        for index, row, part in batch.requests:
            context, continuation = scored[index]
            whole = [*context, *continuation]
            read = whole[:-1][-64:]  # cut on the left
            assert batch.tokens[row, : len(read)].tolist() == read
            assert not batch.tokens[row, len(read) :].any()
            assert batch.targets[row, part].tolist() == list(continuation)
            first = len(read) - len(continuation)
            assert batch.positions[row, part].tolist() == [*range(first, len(read))]


def test_batches_of_a_length_have_as_many_rows():
    short = [Request([i], [1]) for i in range(1, 10)]
    made_batches = list(batches(short, 4, reach=64))
    assert [batch.tokens.shape for batch in made_batches] == [(4, 32)] * 3
    assert [len(batch.requests) for batch in made_batches] == [4, 4, 1]


def test_an_answer_is_the_sum_of_its_own_part():
    batch = requests.Batch(None, None, None, [(5, 0, [0, 2]), (3, 1, [1])])
    log_p, best = -np.arange(6.0).reshape(2, 3), np.array([[1, 0, 1], [1, 0, 1]], bool)
    assert dict(answers(batch, log_p, best)) == {5: (-2.0, True), 3: (-4.0, False)}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], [1]), "a token at least of each"),
        (Request([1], []), "a token at least of each"),
        (Request([1], [2] * 9), "a continuation of 9 tokens is longer than the 8"),
    ],
)
def test_requests_that_cannot_be(request_, message):
    with pytest.raises(ValueError, match=message):
        list(batches([request_], 4, reach=8))


def test_prompts_are_filled_up_with_rows():
    tokens, lengths = requests.prompts([[5, 6, 7], [8]], 4, most=2000)
    assert tokens.shape == (4, 32) and lengths.tolist() == [3, 1, 1, 1]
    assert tokens[0, :4].tolist() == [5, 6, 7, 0] and tokens[1, :2].tolist() == [8, 0]


def _params():
    """Layers outweigh the embedding, which repeats a token."""
    params = jax.jit(LM.init)(jax.random.key(0))
    for name in ("after_attention", "after_mlp"):
        params["layers"][name]["norm"] += 5
    return params


def _served():
    mesh = make_mesh(MeshShape(fsdp=2))
    with jax.set_mesh(mesh):
        return Served(LM, jax.device_put(_params(), param_shardings(LM, mesh)), mesh)


def _answered(served):
    answered = {}
    for batch in batches(_asked(), served.rows(1), reach=64):
        answered.update(answers(batch, *served.score(*batch[:3])))
    return answered


def _plain():
    """log p and the most likely token at each position of a row that is not padded."""
    params = _params()

    @jax.jit
    def read(tokens):
        return head.logits(LM.hidden(params, tokens), LM.table(params), LM.softcap)

    for context, continuation in _asked():
        row = np.array([[*context, *continuation][-65:]])
        z = np.asarray(read(row[:, :-1]), np.float64)[0, -len(continuation) :]
        log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
        total = log_p[np.arange(len(continuation)), list(continuation)].sum()
        yield total, bool((z.argmax(-1) == continuation).all())


@pytest.mark.slow
def test_a_mesh_answers_as_one_device_row_by_row():
    answered = _answered(_served())
    for index, (log_p, greedy) in enumerate(_plain()):
        assert answered[index].log_probability == pytest.approx(log_p, abs=1e-4)
        assert answered[index].greedy == greedy


@pytest.mark.slow
def test_writing_ends_at_a_stop_or_where_it_is_enough():
    """Of what a row writes when nothing stops it, both give the beginning."""
    served = _served()
    contexts = [[5, 6, 7], [8], [9, 10], [11], [1, 2]]
    rows = requests.prompts(contexts, served.rows(5), most=64)
    never = lambda row, ids: row >= 5  # noqa: E731
    free = served.write(*rows, 70, [VOCABULARY], never)[:5]
    assert {len(ids) for ids in free} == {70}
    stop = next(token for token in free[0][40:] if token not in free[0][:36])
    expected = [ids[: ids.index(stop)] if stop in ids else ids for ids in free]
    assert served.write(*rows, 70, [VOCABULARY, stop], never)[:5] == expected
    looked = []
    enough = lambda row, ids: looked.append(len(ids)) or row >= 5 or len(ids) >= 32  # noqa: E731
    assert served.write(*rows, 70, [VOCABULARY], enough)[:5] == [ids[:32] for ids in free]
    assert max(looked) == 32


def test_without_lm_eval_a_line_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "nowhere", "--tasks", "x"])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert message.startswith("undo-jax: lm-eval is not installed: pip install 'lm_eval>=")
    assert message.count("\n") == 1


HOST = """
import sys
from undo_jax.cli.devices import Processes, prepare_devices
prepare_devices(Processes(coordinator=sys.argv[1], processes=2, process=int(sys.argv[2])))
import json
import importlib.util
spec = importlib.util.spec_from_file_location("asked", sys.argv[3])
asked = importlib.util.module_from_spec(spec)
spec.loader.exec_module(asked)
served = asked._served()
if sys.argv[2] == "1":
    served.follow()
else:
    found = asked._answered(served)
    rows = asked.requests.prompts([[5, 6, 7], [8]], served.rows(2), most=64)
    written = served.write(*rows, 40, [asked.VOCABULARY], lambda row, ids: row >= 2)[:2]
    served.end()
    print(json.dumps([[found[i] for i in range(len(found))], written]))
"""


@pytest.mark.slow
def test_process_0_asks_and_the_other_follows(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
    running = [
        subprocess.Popen([sys.executable, "-c", HOST, place, str(process), __file__],
                         env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for process in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], outputs
    answered, written = json.loads(outputs[0][0].splitlines()[-1])  # after what Gloo says
    served = _served()
    local = _answered(served)
    rows = requests.prompts([[5, 6, 7], [8]], served.rows(2), most=64)
    assert written == served.write(*rows, 40, [VOCABULARY], lambda row, ids: row >= 2)[:2]
    for index, (log_p, greedy) in enumerate(answered):
        assert local[index] == (pytest.approx(log_p, abs=1e-5), greedy)
