"""The demo in a real browser: from disk and live, by keyboard and mouse, small and large."""

import os
import re
import signal
import subprocess
import sys

import pytest
from browser import SCHEMES, SIZES, browser, opened, overflow, violations  # noqa: F401
from demo_run import FILE, KEPT, LAST, MODELS, write_run

from undo_jax.cli import main as cli

pytestmark = pytest.mark.slow
ALL = [(size, scheme) for size in SIZES for scheme in SCHEMES]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def static(workdir):
    """The address of the page on disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
        cli.main(["demo", str(workdir), "--experiment", FILE])
    return (workdir / "demo-quickstart" / "index.html").as_uri()


@pytest.fixture(scope="module")
def live(workdir):
    """The address of a server in a process of its own, which Ctrl-C ends."""
    pytest.importorskip("uvicorn", reason="pip install '.[demo]'")
    words = ["demo", str(workdir), "--experiment", FILE, "--serve", "--port", "0"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-m", "undo_jax", *words],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    message = ""
    for line in process.stderr:
        message += line
        if match := re.search(r"demo: (http://127\.0\.0\.1:\d+/)", line):
            break
    else:
        pytest.fail(message)
    yield match[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    with process.stderr:
        assert process.stderr.read() == "interrupted\n"


def _cards(page):
    """The answer of each card, by its model and step."""
    return {
        (card.get_attribute("data-model"), int(card.get_attribute("data-step"))):
        card.locator(".text").inner_text()
        for card in page.locator(".card").all()
    }  # fmt: skip


def test_without_scripts_it_says_so_and_shows_no_empty_controls(browser, static):  # noqa: F811
    with opened(browser, static, java_script_enabled=False) as page:
        assert "needs JavaScript" in page.locator("noscript p:visible").inner_text()
        assert page.locator("button:visible, input:visible, h2:visible").count() == 0


@pytest.mark.parametrize(("size", "scheme"), ALL)
def test_it_opens_from_disk_and_is_fit_for_all(browser, static, size, scheme):  # noqa: F811
    with opened(browser, static, size, scheme) as page:
        assert page.locator(".card").count() == len(MODELS)
        assert overflow(page) == 0
        assert violations(page) == []
        assert page.evaluate("getComputedStyle(document.body).colorScheme") == "light dark"


def test_the_slider_moves_every_answer_and_the_point_on_every_curve(browser, static):  # noqa: F811
    with opened(browser, static) as page:
        data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
        points = "curves.plots.map((plot) => [curves.step, plot.series.length])"
        page.focus("#step")
        for at, step in enumerate((0, KEPT, LAST)):
            if at:
                page.keyboard.press("ArrowRight")
            cards = _cards(page)
            texts = page.locator(".card .role").all_inner_texts()
            assert texts[:2] == ["before unlearning; is not attacked", "the base after unlearning"]
            for i, name in enumerate(MODELS):
                text = data["replies"][data["shown"]][at][i]["text"]
                assert cards[name, step] == (text.strip() or "(nothing)")
            assert page.evaluate(points) == [[step, len(MODELS) + 1]] * 2
            label = page.get_attribute("#step", "aria-valuetext")
            assert label == (f"{step} of {LAST} steps" if step else "not begun")
        page.locator("#status", has_text=f"after {LAST} steps: base answers").wait_for(
            state="attached"
        )
        first = page.inner_text("#status")
        page.keyboard.press("Home")
        page.locator("#status", has_text="before the attack: base answers").wait_for(
            state="attached"
        )
        assert page.inner_text("#status") != first
        page.locator(".u-over").first.click(
            position={"x": 5, "y": 5}
        )  # the first step of the curve
        assert page.input_value("#step") == "0"


def test_likeliest_tokens_are_there_on_hover_and_on_focus(browser, static):  # noqa: F811
    with opened(browser, static) as page:
        tips = page.locator(".tip")
        answers = page.locator(".answer button")
        assert not tips.first.is_visible()
        answers.first.hover()
        assert tips.first.is_visible() and tips.first.locator("li").count() == 5
        page.mouse.move(0, 0)
        answers.nth(2).focus()
        assert tips.nth(2).is_visible() and not tips.first.is_visible()
        page.keyboard.press("Escape")
        assert not tips.nth(2).is_visible()
        assert answers.nth(2).get_attribute("aria-describedby") == tips.nth(2).get_attribute("id")


def test_examples_views_models_and_numbers(browser, static):  # noqa: F811
    with opened(browser, static) as page:
        page.locator("#heat button").first.click()
        data = page.evaluate("JSON.parse(document.getElementById('data').textContent)")
        assert page.inner_text("#asked") == data["examples"][0]["prompt"]
        page.locator("#toggles button").first.click()
        assert "base" not in {name for name, _ in _cards(page)}
        assert page.evaluate("curves.plots.map((p) => p.series[1].show)") == [False, False]
        page.locator("#views button").nth(1).click()
        page.focus("#step")
        page.keyboard.press("End")
        pair = "unlearn-only", "Unlearn-and-Distill"
        assert list(_cards(page)) == [(name, step) for step in (0, LAST) for name in pair]
        page.locator("#numbers summary").click()
        rows = page.locator("#table tbody tr")
        assert [int(row.locator("th").inner_text()) for row in rows.all()] == [0, 5, KEPT, LAST]
        plot = page.locator(".u-over").first
        plot.scroll_into_view_if_needed()
        plot.hover(position={"x": 50, "y": 50})
        assert re.match(r"step \d+", page.locator(".hint").first.inner_text())


def test_the_attack_plays(browser, static):  # noqa: F811
    with opened(browser, static) as page:
        page.click("#play")
        page.locator("#step-told", has_text=f"{LAST} of {LAST} steps").wait_for()
        page.locator("#play", has_text="▶").wait_for()
        assert page.input_value("#step") == "2"


def test_a_visitors_prompt_is_answered_live_as_text(browser, live, capsys, workdir, monkeypatch):  # noqa: F811
    monkeypatch.setattr("undo_jax.cli.devices.prepare_devices", lambda *_: None)
    with opened(browser, live) as page:
        assert violations(page) == []
        page.focus("#step")
        page.keyboard.press("End")
        page.fill("#free-prompt", "12*12=")
        page.fill("#free-answer", "144")
        page.keyboard.press("Enter")
        page.locator(".card .text").nth(4).wait_for()
        cards = _cards(page)
        folder = next(workdir.glob("relearn-oracle-*"))
        capsys.readouterr()
        cli.main(
            [
                "generate",
                str(folder),
                "--experiment",
                FILE,
                "--prompt",
                "12*12=",
                "--new-tokens",
                "16",
            ]
        )
        assert cards["oracle", LAST] == capsys.readouterr().out.removesuffix("\n")
        page.focus("#step")
        page.keyboard.press("ArrowLeft")
        page.locator(f".card[data-step='{KEPT}'] .text").nth(4).wait_for()
        assert _cards(page)["oracle", KEPT] != cards["oracle", LAST]
        assert page.inner_text("#right") == "right answer: 144"
        page.fill("#free-prompt", "11*11=")  # has another right answer
        assert page.input_value("#free-answer") == ""
        page.fill("#free-answer", "121")
        page.fill("#free-prompt", "11*12=")  # one that was not asked for yet stays
        assert page.input_value("#free-answer") == "121"


def test_a_prompt_that_cannot_be_read_is_told(browser, live):  # noqa: F811
    page = browser.new_page()  # the refused request is on its console
    try:
        page.goto(live)
        page.fill("#free-prompt", " ")
        page.click("#free button")
        assert page.inner_text("#free-error") == "Write a prompt first."
        page.fill("#free-prompt", "<img src=x onerror=alert(1)>")
        with page.expect_response("**/answers") as refused:
            page.click("#free button")
        assert refused.value.status == 422
        page.locator("#free-error", has_text="'<' is not in the alphabet").wait_for()
        assert page.inner_text("#asked") == "<img src=x onerror=alert(1)>"
        assert page.locator("img").count() == 0
    finally:
        page.close()
