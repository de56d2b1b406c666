"""A real browser for tests of pages: Debian's Chromium, driven by Playwright.

A test that takes `browser` is skipped, with the reason, where there is no Chromium or no Playwright
(`apt-get install chromium`, the extra `browser`).
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SIZES = ((390, 844), (1280, 900))  # a phone and a desktop
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A running Chromium."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="there is no Playwright: pip install '.[browser]'"
    )
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@contextmanager
def opened(browser: Any, url: str, size=SIZES[1], scheme="light", elsewhere=(), **options: Any):
    """A page that is open, on which nothing has gone wrong when the block ends.

    Nothing is written on the console, no script fails, and no request goes to another place than
    the `url`'s own, or those that begin with one of `elsewhere`.
    """
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, **options
    )
    page, wrong = context.new_page(), []
    page.on("console", lambda said: wrong.append(f"console {said.type}: {said.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    own = (url.partition("?")[0].rpartition("/")[0] + "/", "data:", "blob:", *elsewhere)
    page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(r.url))
    try:
        page.goto(url)
        yield page
        assert not wrong, wrong
    finally:
        context.close()


def violations(page: Any, worst: tuple[str, ...] = ("serious", "critical")) -> list[str]:
    """What axe-core finds wrong with a page, of these impacts; skips without axe-core."""
    pytest.importorskip("axe_playwright_python", reason="pip install '.[browser]'")
    code = resources.files("axe_playwright_python") / "axe.min.js"
    page.evaluate(code.read_text(encoding="utf-8"))  # not as an element: pages forbid these
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{one['id']}: {one['help']}: {node['html'][:200]}"
        for one in found
        if one["impact"] in worst
        for node in one["nodes"]
    ]


def overflow(page: Any) -> int:
    """How many pixels of a page are right of the window."""
    return page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
