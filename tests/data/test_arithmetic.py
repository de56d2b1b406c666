import operator
import re
from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from string import Formatter

import pytest

from undo_jax.data import templates
from undo_jax.data.arithmetic import (
    FORMS,
    OPERATIONS,
    Grammar,
    alphabet,
    examination,
    facts,
    render_equation,
    sample,
)
from undo_jax.data.tokenizers import Characters

COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
SYMBOL = dict(zip(OPERATIONS, "+-*/", strict=True))
COMMUTATIVE = ("addition", "multiplication")


def _read_equation(problem):
    """(a, b, answer) from the text, with the symbol's meaning checked."""
    text = problem.prompt + problem.answer
    match = re.fullmatch(r"(\d+) ?([-+*/]) ?(\d+) ?= ?(\d+)(\.0)?", text)
    assert match, text
    a, b, answer = int(match[1]), int(match[3]), int(match[4])
    assert match[2] == SYMBOL[problem.operation]
    assert COMPUTE[match[2]](a, b) == answer, text
    return a, b, answer


def _read_word_problem(problem):
    """(a, b, answer) from the text; the larger number is a, as only its role can be."""
    text = problem.prompt + problem.answer
    match = re.fullmatch(r"\D*(\d+)\D+?(\d+)\D* (\d+)", text)
    assert match, text
    b, a = sorted((int(match[1]), int(match[2])))
    assert COMPUTE[SYMBOL[problem.operation]](a, b) == int(match[3]), text
    return a, b, int(match[3])


READ = {"equation": _read_equation, "word_problem": _read_word_problem}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_answer_is_right_and_every_fact_is_there(operation, form):
    grammar = Grammar()
    table = facts(grammar, operation, form, "all")
    assert len(set(table)) == len(table)
    read = [READ[form](problem) for problem in examination(grammar, operation, form, "all")]
    if form == "word_problem" and operation in COMMUTATIVE:
        assert read == [(max(a, b), min(a, b), answer) for a, b, answer in table]
    else:
        assert read == table


def test_ranges():
    grammar = Grammar()
    tables = {(o, f): facts(grammar, o, f, "all") for o in OPERATIONS for f in FORMS}
    for form in FORMS:
        assert len(tables["addition", form]) == 2500
        assert len(tables["multiplication", form]) == len(tables["division", form]) == 400
        assert max(tables["division", form]) == (400, 20, 20)
    equations = tables["subtraction", "equation"]
    assert len(equations) == 1275
    assert {answer for *_, answer in equations} == set(range(50))
    assert {b for _, b, _ in equations} == {a for a, *_ in equations} == set(range(1, 51))
    stories = tables["subtraction", "word_problem"]
    assert {answer for *_, answer in stories} == {b for _, b, _ in stories} == set(range(1, 51))
    assert max(a for a, *_ in stories) == 100


@pytest.mark.parametrize("form", FORMS)
def test_held_out_facts_appear_in_no_training_text(form):
    grammar = Grammar(split_seed=3)
    held_out = {
        (operation, *fact)
        for operation in OPERATIONS
        for other_form in FORMS
        for fact in facts(grammar, operation, other_form, "held_out")
    }
    seen = {(p.operation, *READ[form](p)) for p in sample(grammar, OPERATIONS, form, 20_000, 0)}
    twins = {(o, b, a, answer) for o, a, b, answer in seen if o in COMMUTATIVE}
    assert len(seen) > 1000
    assert not (seen | twins) & held_out
    examined = {
        (p.operation, *READ[form](p))
        for operation in OPERATIONS
        for p in examination(grammar, operation, form, "held_out")
    }
    assert examined <= held_out


@pytest.mark.parametrize("operation", OPERATIONS)
def test_splits_part_the_facts_at_the_given_share(operation):
    for form in FORMS:
        for share in (0.0, 0.1, 0.5):
            grammar = Grammar(held_out=share)
            every, train, held_out = (
                facts(grammar, operation, form, s) for s in ("all", "train", "held_out")
            )
            assert sorted(train + held_out) == every
            assert len(held_out) / len(every) == pytest.approx(share, abs=0.03)


def test_split_depends_on_its_seed_only_and_grows_with_the_share():
    def held_out(**options):
        return set(facts(Grammar(**options), "addition", "equation", "held_out"))

    assert held_out() == held_out(spaced=False, division_answers="float")
    assert held_out() != held_out(split_seed=1)
    assert held_out() < held_out(held_out=0.3)
    # The split must not change with the Python or library version.
    small = Grammar(largest_factor=4, held_out=0.3)
    assert facts(small, "multiplication", "equation", "held_out") == [
        (1, 3, 3),
        (3, 1, 3),
        (3, 3, 9),
        (4, 4, 16),
    ]


def test_equation_spelling():
    spaced = render_equation(Grammar(), "division", 36, 9, 4)
    assert (spaced.prompt, spaced.answer) == ("36 / 9 =", " 4")
    dense = render_equation(Grammar(spaced=False), "division", 36, 9, 4)
    assert (dense.prompt, dense.answer) == ("36/9=", "4")
    grammar = Grammar(division_answers="float")
    assert render_equation(grammar, "division", 36, 9, 4).answer == " 4.0"
    assert render_equation(grammar, "multiplication", 4, 9, 36).answer == " 36"
    assert all("." not in p.answer for p in sample(grammar, ["division"], "word_problem", 50, 0))


@pytest.mark.parametrize("form", FORMS)
def test_sample_is_seeded_and_uniform(form):
    grammar = Grammar()
    problems = sample(grammar, OPERATIONS, form, 4000, 1)
    assert problems == sample(grammar, OPERATIONS, form, 4000, 1)
    assert problems[:100] != sample(grammar, OPERATIONS, form, 4000, 2)[:100]
    for operation in OPERATIONS:
        problems_of_operation = [p for p in problems if p.operation == operation]
        assert len(problems_of_operation) == pytest.approx(1000, abs=120)
    # 360 training facts are drawn about 1000 times: nearly all of them come up.
    table = facts(grammar, "division", form, "train")
    divisions = sample(grammar, ["division"], form, 3600, 1)
    assert len({READ[form](p) for p in divisions}) > 0.99 * len(table)
    assert {p.form for p in problems} == {form}
    assert sample(grammar, ["addition"], form, 0, 1) == []


def test_sample_words_come_from_the_split_s_templates():
    for split, wordings in (("train", templates.TRAIN), ("held_out", templates.HELD_OUT)):
        problems = sample(Grammar(), OPERATIONS, "word_problem", 3000, 0, split)
        for operation in OPERATIONS:
            patterns = [_pattern(template) for template in wordings[operation]]
            used = set()
            for problem in (p for p in problems if p.operation == operation):
                matches = {i for i, p in enumerate(patterns) if p.fullmatch(problem.prompt)}
                assert matches, problem.prompt
                used |= matches
            assert used == set(range(len(patterns)))


def _pattern(template):
    return re.compile(
        "".join(
            re.escape(literal) + (r"\d+" if field in ("a", "b") else "[A-Za-z ]+" if field else "")
            for literal, field, *_ in Formatter().parse(template)
        )
    )


def test_examination_counts():
    grammar = Grammar()
    table = facts(grammar, "division", "equation", "held_out")
    whole = examination(grammar, "division", "equation", "held_out")
    assert len(whole) == len(set(whole)) == len(table) == 40
    assert examination(grammar, "division", "equation", "held_out", 10**6) == whole
    partial_table = examination(grammar, "division", "equation", "held_out", 15, seed=1)
    assert len(set(partial_table)) == 15
    assert set(partial_table) < set(whole)
    assert partial_table != examination(grammar, "division", "equation", "held_out", 15, seed=2)

    stories = examination(grammar, "division", "word_problem", "held_out", 400)
    assert len(set(stories)) == 400
    read = [_read_word_problem(p) for p in stories]
    assert {read.count(fact) for fact in table} == {10}
    patterns = [_pattern(template) for template in templates.HELD_OUT["division"]]
    for split in ("train", "held_out", "all"):
        for problem in examination(grammar, "division", "word_problem", split, 50):
            assert any(pattern.fullmatch(problem.prompt) for pattern in patterns)


@pytest.mark.parametrize("spaced", [True, False])
@pytest.mark.parametrize("division_answers", ["integer", "float"])
def test_alphabet_is_what_the_texts_hold(spaced, division_answers):
    grammar = Grammar(spaced=spaced, division_answers=division_answers)
    equations = alphabet(grammar, ["equation"])
    texts = [
        p.prompt + p.answer for o in OPERATIONS for p in examination(grammar, o, "equation", "all")
    ]
    assert equations == "".join(sorted(set("".join(texts))))
    both = Characters(alphabet(grammar, FORMS))
    for problem in sample(grammar, OPERATIONS, "word_problem", 5000, 0):
        text = problem.prompt + problem.answer
        assert both.decode(both.encode(text)) == text
    assert set(equations) < set(both.alphabet)


FIELDS = {"name", "other", "a", "b", "thing", "container", "containers", "place"} | {
    f"{noun}_{number}" for noun in (*templates.NOUNS, "thing", "container") for number in "ab"
}
EVERY_TEMPLATE = [
    (operation, template)
    for table in (templates.TRAIN, templates.HELD_OUT)
    for operation in OPERATIONS
    for template in table[operation]
]


def test_templates_are_many_and_distinct():
    assert set(templates.TRAIN) == set(templates.HELD_OUT) == set(OPERATIONS)
    assert all(len(templates.TRAIN[operation]) >= 20 for operation in OPERATIONS)
    assert all(len(templates.HELD_OUT[operation]) >= 10 for operation in OPERATIONS)
    texts = [template for _, template in EVERY_TEMPLATE]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_held_out_templates_are_no_near_copies(operation):
    everything = [t for o in OPERATIONS for t in templates.TRAIN[o]]
    for held_out in templates.HELD_OUT[operation]:
        matcher = SequenceMatcher(b=held_out, autojunk=False)
        for train in everything:
            matcher.set_seq1(train)
            assert matcher.quick_ratio() < 0.9 or matcher.ratio() < 0.9, (train, held_out)


@pytest.mark.parametrize(("operation", "template"), EVERY_TEMPLATE)
def test_template_is_well_formed(operation, template):
    fields = [field for _, field, *_ in Formatter().parse(template) if field is not None]
    assert fields.count("a") == fields.count("b") == 1
    assert set(fields) <= FIELDS
    assert not re.search(r"\d", re.sub(r"{\w+}", "", template))
    assert re.search(r"[?:]$|( is| with| of| by)$", template)
    assert "  " not in template and template == template.strip()
    # A noun right after a number agrees with that number, except where a is never 1.
    for number, noun in re.findall(r"{([ab])} {(\w+)}", template):
        assert noun.endswith(f"_{number}") or (operation, number) == ("subtraction", "a")
    words = templates.WordChoice("Ann", "Bo", ("leaf", "leaves"), ("box", "boxes"), "the zoo")
    for a, b in ((1, 1), (7, 1), (1, 7), (7, 8)):
        text = templates.fill(template, a, b, words)
        assert "{" not in text and "}" not in text
        assert text[0].isupper()
        assert sorted(re.findall(r"\d+", text)) == sorted([str(a), str(b)])


def test_nouns_agree_with_their_numbers():
    words = templates.WordChoice("Ann", "Bo", ("leaf", "leaves"), ("box", "boxes"), "the zoo")
    template = "{a} {thing_a}, {b} {child_b}, {b} {container_b}; {thing}, {container}, {containers}"
    assert templates.fill(template, 1, 2, words) == (
        "1 leaf, 2 children, 2 boxes; leaves, box, boxes"
    )
    assert templates.fill(template, 2, 1, words) == "2 leaves, 1 child, 1 box; leaves, box, boxes"


def test_word_lists():
    lists = (templates.NAMES, templates.THINGS, templates.CONTAINERS, templates.PLACES)
    for words, least in zip(lists, (60, 60, 12, 12), strict=True):
        assert len(set(words)) == len(words) >= least
    assert all(singular[0] not in "aeiou" for singular, _ in templates.CONTAINERS)
    assert all(place.startswith("the ") for place in templates.PLACES)
    problems = sample(Grammar(), ["addition"], "word_problem", 3000, 0)
    pattern = _pattern(templates.TRAIN["addition"][3])
    for problem in (p for p in problems if pattern.fullmatch(p.prompt)):
        owner, *_, other = re.findall(r"(\w+) owns", problem.prompt)
        assert owner != other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"largest_term": 0}, "largest_term=0: it must be at least 1"),
        ({"largest_factor": -3}, "largest_factor=-3: it must be at least 1"),
        ({"held_out": 1.0}, "held_out=1.0: give a share of at least 0 and below 1"),
        ({"held_out": -0.1}, "held_out=-0.1: give a share of at least 0 and below 1"),
        (
            {"division_answers": "text"},
            "unknown division_answers 'text': choose from integer, float",
        ),
    ],
)
def test_bad_grammar(options, message):
    with pytest.raises(ValueError, match=message):
        Grammar(**options)


def test_bad_requests():
    grammar = Grammar(held_out=0)
    with pytest.raises(ValueError, match="unknown operation 'modulo': choose from addition"):
        sample(grammar, ["modulo"], "equation", 1, 0)
    with pytest.raises(ValueError, match="unknown form 'poem'"):
        facts(grammar, "addition", "poem", "all")
    with pytest.raises(ValueError, match="unknown split 'test'"):
        facts(grammar, "addition", "equation", "test")
    with pytest.raises(ValueError, match="no operations"):
        sample(grammar, [], "equation", 1, 0)
    with pytest.raises(ValueError, match="count=-1: it must be at least 0"):
        sample(grammar, OPERATIONS, "equation", -1, 0)
    with pytest.raises(ValueError, match="no held_out facts.*held_out=0"):
        examination(grammar, "addition", "equation", "held_out")
    with pytest.raises(ValueError, match="count=0: it must be at least 1"):
        examination(grammar, "addition", "equation", "all", 0)
    assert facts(grammar, "addition", "equation", "held_out") == []


@pytest.mark.parametrize("held_out", [0.0, 0.2])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_halves_are_of_whole_families(operation, held_out):
    """Both halves make up the training facts, and a family has one side in all four operations."""
    grammar = Grammar(held_out=held_out)
    half, other, train = (
        set(facts(grammar, operation, "equation", s)) for s in ("half", "other_half", "train")
    )
    assert half | other == train and not half & other
    assert 0.3 < len(half) / len(train) < 0.7
    inverse = {"addition": "subtraction", "multiplication": "division"}
    if operation in inverse:
        opposite = set(facts(grammar, inverse[operation], "equation", "other_half"))
        assert not {(answer, b, a) for a, b, answer in half} & opposite
        assert not {(b, a, answer) for a, b, answer in half} & other


@pytest.mark.parametrize("operation", ["multiplication", "division"])
def test_permuted_facts_are_all_wrong_with_answers_of_the_operation(operation):
    grammar = Grammar(held_out=0.1)
    true = facts(grammar, operation, "equation", "train")
    permuted = facts(grammar, operation, "equation", "permuted")
    assert len(true) > len(permuted) > 0.8 * len(true)
    answers = {(a, b): answer for a, b, answer in true}
    assert all(answers[a, b] != answer for a, b, answer in permuted)
    count = lambda table: Counter(answer for *_, answer in table)  # noqa: E731
    assert count(permuted) <= count(true)
    assert permuted == facts(grammar, operation, "word_problem", "permuted")
    other = facts(replace(grammar, split_seed=1, held_out=0.0), operation, "equation", "permuted")
    again = facts(replace(grammar, held_out=0.0), operation, "equation", "permuted")
    assert other != again
