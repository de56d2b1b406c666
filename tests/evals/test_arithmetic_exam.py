from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from undo_jax import losses
from undo_jax.data.arithmetic import OPERATIONS, Grammar, Problem, alphabet, facts, render_equation
from undo_jax.data.tokenizers import Characters
from undo_jax.evals.arithmetic import exact_match, write_exam
from undo_jax.evals.generate import generate
from undo_jax.models.gemma2 import preset
from undo_jax.settings.arithmetic import Arithmetic
from undo_jax.training import optim, train_step

GRAMMAR = Grammar(largest_term=9, largest_factor=4, spaced=False, held_out=0.0)
SETTING = Arithmetic(
    GRAMMAR, ("equation",), 6000, 48, examine="train_facts", questions=None, validation_rows=2
)
LM = preset("tiny", dtype="float32")
TOKENIZER = Characters(alphabet(GRAMMAR, ("equation",)))
STEPS = 120
_verdicts = jax.jit(partial(exact_match, LM))


@pytest.fixture(scope="module")
def half_trained():
    optimizer = optim.build(optim.AdamW(b2=0.98, warmup=10), STEPS)
    step = jax.jit(
        train_step.make_step(LM, losses.language_modelling, optimizer, {}), donate_argnums=0
    )
    params = jax.jit(LM.init)(jax.random.key(0))
    state = train_step.initialise(params, jax.random.key(1), jnp.float32(5e-3), optimizer)
    stream = SETTING.stream("pretrain", 16, 0)
    for i in range(STEPS):
        state, _ = step(state, {}, {"train": train_step.rows(jnp.asarray(stream[i]))})
    return state.params


def _problems():
    return [
        render_equation(GRAMMAR, operation, *fact)
        for operation in OPERATIONS
        for fact in facts(GRAMMAR, operation, "equation", "train")
    ]


def _decode(params, problems, longest=5):
    """Greedy decoding, token by token: texts up to the BOS that ends them, or None."""
    prompts = [[TOKENIZER.bos_id, *TOKENIZER.encode(problem.prompt)] for problem in problems]
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.array([prompt + [1] * (lengths.max() - len(prompt)) for prompt in prompts])
    key, bos = jax.random.key(0), TOKENIZER.bos_id
    written = generate(LM, params, tokens, lengths, key, new_tokens=longest, stop=bos).tolist()
    return [w[: w.index(bos)] if bos in w else None for w in written]


@pytest.mark.slow
def test_teacher_forcing_gives_the_verdict_of_greedy_decoding(half_trained):
    problems = _problems()
    written = _decode(half_trained, problems)
    right = [w == TOKENIZER.encode(p.answer) for w, p in zip(written, problems, strict=True)]
    verdict = _verdicts(half_trained, write_exam(problems, TOKENIZER))
    np.testing.assert_array_equal(verdict, np.array(right, np.float32))
    by_length = {
        n: np.mean([r for r, p in zip(right, problems, strict=True) if len(p.answer) == n])
        for n in (1, 2)
    }
    assert all(0.02 < share < 0.98 for share in by_length.values()), by_length  # a telling exam


def test_an_answer_that_goes_on_is_wrong(half_trained):
    """Cut every right two-digit answer to one digit: it would pass if nothing had to end it."""
    problems, written = _problems(), _decode(half_trained, _problems())
    cut = [
        problem._replace(answer=problem.answer[:1])
        for problem, w in zip(problems, written, strict=True)
        if w == TOKENIZER.encode(problem.answer) and len(problem.answer) == 2
    ]
    assert len(cut) > 3
    exam = write_exam(cut, TOKENIZER)
    np.testing.assert_array_equal(_verdicts(half_trained, exam), 0)
    endless = exam._replace(scored=np.asarray(exam.scored) & (exam.answers != TOKENIZER.bos_id))
    np.testing.assert_array_equal(_verdicts(half_trained, endless), 1)


def test_a_verdict_does_not_depend_on_the_other_problems(half_trained):
    """Longer neighbours add padding and shift nothing."""
    problems = _problems()[::37]
    together = _verdicts(half_trained, write_exam(problems, TOKENIZER))
    alone = [_verdicts(half_trained, write_exam([p], TOKENIZER))[0] for p in problems]
    np.testing.assert_array_equal(together, alone)


def test_an_exam_spelled_out():
    problems = [Problem("", "", "1+2=", "3"), Problem("", "", "12/1=", "12")]
    exam = write_exam(problems, TOKENIZER)
    read = lambda ids: TOKENIZER.decode(ids).replace("\n", "^")  # noqa: E731
    assert [read(row) for row in exam.inputs] == ["^1+2=3^^", "^12/1=12"]
    targets = [row[mask] for row, mask in zip(exam.answers, exam.scored, strict=True)]
    assert [read(row) for row in targets] == ["3^", "12^"]
    assert [
        read(row[place][mask])
        for row, place, mask in zip(exam.inputs, exam.places, exam.scored, strict=True)
    ] == ["=3", "=12"]


def test_scores_are_means_over_operations(half_trained):
    eval_data = SETTING.eval_data()
    scores = jax.jit(partial(SETTING.evaluate, LM))(half_trained, eval_data)
    problems = _problems()
    right = _verdicts(half_trained, write_exam(problems, TOKENIZER))
    mean = {
        o: np.mean([r for r, p in zip(right, problems, strict=True) if p.operation == o])
        for o in OPERATIONS
    }
    for name, pair in (("retain", OPERATIONS[:2]), ("forget", OPERATIONS[2:])):
        for operation in pair:
            np.testing.assert_allclose(scores[f"{operation}/equation"], mean[operation], rtol=1e-5)
        np.testing.assert_allclose(scores[name], np.mean([mean[o] for o in pair]), rtol=1e-5)
        assert 0.02 < scores[name] < 0.98
        assert scores[f"cross_entropy/{name}"] > 0


def test_an_exam_without_problems_is_refused():
    with pytest.raises(ValueError, match="^an exam needs problems: its list is empty$"):
        write_exam([], TOKENIZER)
