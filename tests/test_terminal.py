"""What is told of a training: a bar on a terminal, a line every so often elsewhere."""

import os
import re
import time
from collections import deque

import pytest
from terminals import BAR, lines, told

from undo_jax.logs import log as logs
from undo_jax.logs.eta import RECENT, estimate_seconds_left, format_clock
from undo_jax.runner.save_trained import abbreviate, describe_ending


def _train(end=860, how="all recovered at step 850", interval=0.2):
    """What a training tells of itself, in half a second."""
    with logs.open_log("distill × 2", 1000, [], [], "near, far", interval=interval) as log:
        for step in range(10, end, 10):
            time.sleep(0.5 / (end / 10))
            log.progress(step, 1.0, 307_000)
        log.ends(how)


def test_without_a_terminal_there_are_lines_at_intervals(monkeypatch):
    began = time.monotonic()
    with told(os.pipe, monkeypatch) as said:
        _train()
    took = time.monotonic() - began
    most = took / 0.2
    first, *middle, last = "".join(said).splitlines()
    assert first == "distill × 2 (near, far): starts, 1000 steps"
    end = r"ends, all recovered at step 850 loss 1\.0000, after (\d+):(\d\d)"
    after = re.fullmatch(rf"distill × 2 \(near, far\): {end}", last)
    assert after and 60 * int(after[1]) + int(after[2]) <= round(took)
    steps = []
    for line in middle:
        found = re.fullmatch(
            r"distill × 2 \(near, far\): step (\d+)/1000 loss 1\.0000 307k tok/s, eta \d+:\d\d",
            line,
        )
        assert found, line
        steps.append(int(found[1]))
    assert 1 <= len(steps) <= most and steps == sorted(steps), steps


def test_while_nothing_new_comes_it_is_told_for_how_long(monkeypatch):
    """An evaluation or a compilation: the time that was left is no news."""
    monkeypatch.setattr(logs, "INTERVAL", 0.05)
    with (
        told(os.pipe, monkeypatch) as said,
        logs.open_log("distill", 1000, [], [], interval=0.2) as log,
    ):
        for step in (10, 20):
            log.progress(step, 1.0, 307_000)
        time.sleep(0.5)
        log.ends("")
    first, *middle, last = "".join(said).splitlines()
    assert middle and set(middle) == {
        "distill: step 20/1000 loss 1.0000 307k tok/s, last record 0:00 ago"
    }
    assert "ago" not in first + last


def test_without_a_terminal_what_is_short_has_two_lines(monkeypatch):
    with told(os.pipe, monkeypatch) as said:
        _train(1010, how="", interval=logs.INTERVAL)
        with logs.show_waiting("noise"):
            pass
    shown = "".join(said).splitlines()
    assert len(shown) == 2 and "ends, 1000/1000 loss 1.0000 307k tok/s, after" in shown[1]


def test_without_a_terminal_it_is_told_for_how_long_is_waited(monkeypatch):
    with told(os.pipe, monkeypatch) as said, logs.show_waiting("compiling it", interval=0.1):
        time.sleep(0.35)
    assert len("".join(said).splitlines()) >= 2
    assert set("".join(said).splitlines()) == {"compiling it: 0:00"}


def test_colours_that_are_forced_make_no_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with told(os.pipe, monkeypatch) as said:
        _train()
    assert "\r" not in "".join(said) and "\x1b[2K" not in "".join(said)


@pytest.mark.parametrize("how", ["all recovered at step 850", ""])
def test_on_a_terminal_the_bar_ends_full(monkeypatch, how):
    with told(os.openpty, monkeypatch) as said:
        _train(860 if how else 1010, how)
    shown = lines("".join(said))
    wanted = f"{how} loss 1.0000" if how else "1000/1000 loss 1.0000   307k tok/s"
    assert re.fullmatch(rf"distill × 2   {BAR} {wanted} 0:00:0\d *", shown[-1]), shown
    assert any("━╺" in line or "━╸" in line for line in shown), shown  # not full on the way
    assert any(re.search(r"eta 0:0\d", line) for line in shown)
    assert max(map(len, shown)) <= 80 and "starts" not in "".join(said)


def test_the_time_left_is_that_of_the_recent_rate():
    seen = deque([(100.0, 1)])
    assert estimate_seconds_left(seen, 1000) is None  # compiled until now
    seen.append((101.0, 11))
    assert estimate_seconds_left(seen, 1011) == pytest.approx(100)
    for number in range(1, 300):  # a hundred times slower
        seen.append((101.0 + 10 * number, 11 + number))
    assert estimate_seconds_left(seen, 410) == pytest.approx(1000)
    assert len(seen) <= RECENT / 10 + 2
    slow = deque([(0.0, 1), (500.0, 11), (1500.0, 21)])  # records further apart than a minute
    assert estimate_seconds_left(slow, 31) == pytest.approx(1000)
    assert estimate_seconds_left(deque([(0.0, 5), (9.0, 5)]), 10) is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.4, "0:00"), (65, "1:05"), (7200, "2:00:00")]
)
def test_times_are_told_as_on_a_clock(seconds, text):
    assert format_clock(seconds) == text


@pytest.mark.parametrize(
    ("ran", "text"),
    [
        ([(1000, False), (500, False)], ""),
        ([(850, False), (500, False)], "all recovered at step 850"),
        ([(20, True)], "all diverged at step 20"),
        ([(850, False), (500, False), (20, True)], "2 recovered, 1 diverged at step 850"),
    ],
)
def test_what_ended_early_says_how(ran, text):
    assert describe_ending("recovered", *zip(*ran, strict=True), 1000) == text


def test_the_first_names_stand_for_all():
    assert abbreviate(["a", "a", "b"]) == "a, b"
    assert abbreviate(["a", "b", "c", "b", "d"]) == "a, b and 2 more"
