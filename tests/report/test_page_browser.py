"""The report in a real browser, opened from disk: read with the mouse and with the keyboard."""

import csv
import io
import math
import time
from pathlib import Path

import numpy as np
import pytest
from browser import SCHEMES, SIZES, browser, opened, overflow, violations
from known_logs import Workdir

from undo_jax.report import write

__all__ = ["browser"]
pytestmark = pytest.mark.slow

ODD = '<b>odd & "quoted"'


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of three seeds, its folder."""
    root = tmp_path_factory.mktemp("report")
    work = Workdir(root)
    for seed in range(3):
        work.add("pretrain", "base", seed, scores=(0.99, 0.98))
        work.add("pretrain", "oracle", seed, steps=200, flops=4000, scores=(0.99, 0.01))
        work.add("unlearn", "unlearn-only", seed)
        for alpha in (0.2, 0.8):
            lines = [{"step": t, "loss": 2 / (t + seed)} for t in range(10, 70 + 50 * seed, 10)]
            name = f"UNDO α={alpha}"
            work.add("distill", name, seed, alpha=alpha, steps=200 * alpha + 10 * seed,
                     flops=4000 * alpha, recovered=alpha < 0.5, lines=lines)  # fmt: skip
            end = 1 - 0.7 * alpha + 0.05 * seed
            curves = {("forget", 1e-3): (0.01, 0.3 * end, 0.8 * end, end)}
            work.attack(name, seed, alpha=alpha, curves=curves)
        for name, end in (("oracle", 0.2), ("unlearn-only", 1.0), (ODD, 0.5)):
            curves = {("forget", 1e-3): (0.02 * seed, 0.5 * end, 0.9 * end, end)}
            work.attack(name, seed, curves=curves)
    write(root, "known")
    return root / "report-known"


@pytest.fixture
def page(browser, report):
    with opened(browser, (report / "index.html").as_uri(), accept_downloads=True) as page:
        yield page


def _rows(folder, name):
    header, *rows = csv.reader(io.StringIO((folder / f"{name}.csv").read_text()))
    return [dict(zip(header, row, strict=True)) for row in rows]


def _means(folder, name, x, panel=None):
    """Mean, lowest and highest over seeds at an x, from the CSV file."""
    found = {}
    for row in _rows(folder, name):
        if float(row["x"]) == x and row["panel"] == (panel or name):
            found.setdefault(row["model"], []).append(float(row["y"]))
    return {model: (np.mean(of), min(of), max(of)) for model, of in found.items()}


def _told(figure, column=0):
    """A column of the values beside a plot: [mean, lowest, highest] by model."""
    said = {}
    for row in figure.locator(".readout tbody tr").all():
        name = row.locator("button").inner_text().removesuffix(" *")  # it did not recover
        text = row.locator("td").nth(column).inner_text().replace("−", "-")
        for mark in "[],":
            text = text.replace(mark, " ")
        said[name] = [float(part) for part in text.split()]
    return said


def _agree(figure, known, column=0):
    told = _told(figure, column)
    assert told.keys() == known.keys()
    for model, numbers in told.items():
        for got, want in zip(numbers, known[model], strict=False):
            assert math.isclose(got, want, rel_tol=6e-3, abs_tol=6e-4), (model, numbers)


def _pixels(figure):
    """The colours of the plot's canvas, as one text."""
    return figure.locator(".plot canvas").first.evaluate("canvas => canvas.toDataURL()")


def _look_away(page):
    """No model is pointed at."""
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement.blur()")


def _until(true):
    """Wait until it is so, for at most ten seconds."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_model_that_is_pointed_at_stands_out(page):
    for number in (0, 1):
        figure = page.locator("figure").nth(number)
        figure.scroll_into_view_if_needed()
        _look_away(page)
        before = _pixels(figure)
        button = figure.get_by_role("button", name="UNDO α=0.2")
        button.hover()
        _until(lambda f=figure, b=before: _pixels(f) != b)
        _look_away(page)
        _until(lambda f=figure, b=before: _pixels(f) == b)
        button.focus()
        _until(lambda f=figure, b=before: _pixels(f) != b)


def test_hovering_tells_the_values_of_the_csv_at_that_step(page, report):
    figure = page.locator("figure").first
    over = figure.locator(".u-over").first
    _agree(figure, _means(report, "relearning", 30))  # at first the last step
    box = over.bounding_box()
    for step, place in ((10, 1 / 3 + 0.02), (20, 2 / 3 - 0.03), (0, 0.01), (30, 0.99)):
        over.hover(position={"x": place * box["width"], "y": 40})
        assert figure.locator("caption").inner_text() == f"relearning steps: {step}"
        _agree(figure, _means(report, "relearning", step))
        _agree(figure, _means(report, "relearning", step, "retain"), column=1)
    page.mouse.move(5, 5)  # what was read stays
    _agree(figure, _means(report, "relearning", 30))


def test_the_keyboard_tells_the_same(page, report):
    figure = page.locator("figure").first
    plot, retain = figure.get_by_role("slider").all()
    plot.focus()
    for key, step in (("Home", 0), ("ArrowRight", 10), ("ArrowRight", 20), ("ArrowLeft", 10)):
        page.keyboard.press(key)
        for slider in (plot, retain):
            assert slider.get_attribute("aria-valuenow") == str(step)
        _agree(figure, _means(report, "relearning", step))
    text = plot.get_attribute("aria-valuetext")
    assert text.startswith("10, ") and "oracle 0.100" in text and ODD in text


def test_a_model_is_switched_off_and_on(page):
    figure = page.locator("figure").first
    before = _pixels(figure)
    button = figure.get_by_role("button", name="oracle")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    assert button.get_attribute("aria-pressed") == "false" and _pixels(figure) != before
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    _look_away(page)
    _until(lambda: _pixels(figure) == before)
    every = figure.get_by_role("button", name="hide all")
    every.click()
    assert figure.locator(".readout [aria-pressed=true]").count() == 0
    figure.get_by_role("button", name="show all").click()
    _until(lambda: _pixels(figure) == before)


def test_each_seed_and_other_axes_are_drawn_on_demand(page, report):
    figure = page.locator("figure").first
    drawn = {_pixels(figure)}
    seeds = figure.get_by_role("button", name="each seed")
    seeds.click()
    assert seeds.get_attribute("aria-pressed") == "true"
    cell = figure.locator(".readout tbody tr", has_text="α=0.2").locator("td").first
    ends = [1 - 0.14 + 0.05 * seed for seed in range(3)]
    assert cell.locator("small").inner_text() == " · ".join(
        f"{seed}: {end:#.3g}" for seed, end in enumerate(ends)
    )
    drawn.add(_pixels(figure))
    figure.get_by_role("button", name="log steps").click()
    drawn.add(_pixels(figure))
    assert len(drawn) == 3
    assert not figure.get_by_role("button", name="log scale").count()  # an accuracy
    losses = page.locator("figure").nth(2)
    scale = losses.get_by_role("button", name="log scale")
    assert scale.get_attribute("aria-pressed") == "true"
    before = _pixels(losses)
    scale.click()
    assert scale.get_attribute("aria-pressed") == "false" and _pixels(losses) != before


def test_points_tell_compute_and_robustness(page, report):
    figure = page.locator("figure").nth(1)
    rows = [r for r in _rows(report, "tradeoff") if r["model"] == "UNDO α=0.8"]
    of = {p: [float(r["x"]) for r in rows if r["panel"] == p] for p in ("steps", "FLOPs")}
    told = figure.locator(".readout tbody tr", has_text="α=0.8").locator("td").all_inner_texts()
    robust = [float(r["y"]) for r in rows if r["panel"] == "steps"]
    for text, values in zip(told, (robust, of["steps"], of["FLOPs"]), strict=True):
        assert float(text.split("[")[0].replace("−", "-")) == pytest.approx(np.mean(values), 6e-3)
    plot = figure.get_by_role("slider").first
    plot.focus()
    page.keyboard.press("End")  # the star, at all of the compute
    assert plot.get_attribute("aria-valuetext") == "data filtering (oracle) 100 at 100"
    assert "data filtering" in figure.locator("tr.at").inner_text()


def test_a_header_sorts_its_table(page):
    table = page.get_by_role("region", name="Every model").locator("table")

    def column(number):
        return table.locator(f"tbody tr td:nth-child({number})").all_inner_texts()

    written = column(1)
    header = table.locator("th").nth(2)
    assert header.get_attribute("aria-sort") == "none"
    header.get_by_role("button").click()
    values = [float(text.split()[0]) for text in column(3) if text != "–"]
    assert header.get_attribute("aria-sort") == "ascending" and values == sorted(values)
    header.get_by_role("button").click()
    values = [float(text.split()[0]) for text in column(3) if text != "–"]
    assert header.get_attribute("aria-sort") == "descending"
    assert values == sorted(values, reverse=True) and column(1) != written
    header.get_by_role("button").click()
    assert column(1) == written
    table.locator("th").first.get_by_role("button").click()
    assert column(1) == sorted(written, key=str.lower)


@pytest.mark.parametrize("number", range(4))
def test_files_come_from_the_page(page, report, number):
    figure = page.locator("figure").nth(number)
    with page.expect_download() as found:
        figure.get_by_role("link", name="CSV").click()
    name = found.value.suggested_filename
    assert Path(found.value.path()).read_bytes() == (report / name).read_bytes()
    with page.expect_download() as found:
        figure.get_by_role("link", name="PNG").click()
    assert found.value.suggested_filename == name.replace(".csv", ".png")
    assert Path(found.value.path()).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", SIZES)
def test_it_fits_phones_and_desktops_light_and_dark(browser, report, size, scheme):
    with opened(browser, (report / "index.html").as_uri(), size, scheme) as page:
        assert overflow(page) == 0
        assert page.locator("figure.drawn").count() == 4
        assert page.locator(".static:visible").count() == 0
        for plot in page.locator(".plot").all():
            assert plot.locator("canvas").count() == 1
            inside, around = (
                plot.evaluate("e => e.querySelector('.uplot').getBoundingClientRect().width"),
                plot.evaluate("e => e.getBoundingClientRect().width"),
            )
            assert 250 < inside <= around
        assert not violations(page)


def test_colours_follow_the_scheme(browser, report):
    with opened(browser, (report / "index.html").as_uri()) as page:
        figure = page.locator("figure").first
        before = _pixels(figure)
        page.emulate_media(color_scheme="dark")
        _until(lambda: _pixels(figure) != before)
        page.emulate_media(color_scheme="light")
        _until(lambda: _pixels(figure) == before)


def test_without_scripts_and_on_paper_the_svgs_are_there(browser, report):
    url = (report / "index.html").as_uri()
    with opened(browser, url, SIZES[0], java_script_enabled=False) as page:
        assert page.locator(".static svg:visible").count() == 4
        assert page.locator("th button").count() == 0
    with opened(browser, url) as page:
        page.emulate_media(media="print")
        assert page.locator(".static svg:visible").count() == 4
        assert page.locator(".live:visible").count() == 0
