"""Folders as the datasets TOFU and MUSE lay them out, of a few short texts."""

import json
from pathlib import Path
from typing import Any

COLOURS = ("red", "blue", "green", "white", "black", "brown", "grey", "pink")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_tofu(folder: Path) -> Path:
    """Split forget10: 3 forgotten questions, 6 retained, 3 of a holdout, 3 of the real world."""

    def asked(first, count, judged=False):
        rows = []
        for i in range(first, first + count):
            right, *wrong = (COLOURS[(i * 3 + shift) % 8] for shift in range(3))
            row = {"question": f"Hat {i}?", "answer": f"It is {right}."}
            judged_too = {
                "paraphrased_question": f"Which hat has {i}?",
                "paraphrased_answer": f"{right} it is",
                "perturbed_answer": [f"{one} it is" for one in wrong],
            }
            rows.append(row | (judged_too if judged else {}))
        return rows

    for name, first, count in (("forget10", 0, 3), ("retain90", 3, 6), ("holdout10", 9, 3)):
        write_lines(folder / f"{name}.json", asked(first, count))
    for name, first in (("forget10", 0), ("retain", 3), ("real_authors", 12), ("world_facts", 15)):
        write_lines(folder / f"{name}_perturbed.json", asked(first, 3, judged=True))
    return folder


def write_muse(folder: Path) -> Path:
    """Two forgotten texts, three retained ones in two splits, and two of a holdout."""

    def texts(*numbers):
        return [{"text": f"The hat of {n} is {COLOURS[n % 8]}, and so it was."} for n in numbers]

    def questions(*numbers):
        return [{"question": f"Hat {n}?", "answer": COLOURS[n % 8]} for n in numbers]

    parts = {"forget": texts(0, 1), "retain1": texts(2, 3), "retain2": texts(4)}
    for split, rows in {**parts, "holdout": texts(5, 6)}.items():
        write_lines(folder / f"raw/{split}.jsonl", rows)
    for split in ("forget", "holdout", "retain"):
        rows = texts(*{"forget": (0, 1), "holdout": (5, 6), "retain": (2, 3)}[split])
        write_lines(folder / f"privleak/{split}.jsonl", rows)
    for part, numbers in (("forget", (0, 1)), ("retain", (2, 3))):
        write_lines(folder / f"knowmem/{part}_qa.jsonl", questions(*numbers))
        write_lines(folder / f"knowmem/{part}_qa_icl.jsonl", questions(6, 7))
    gone = [{"prompt": row["text"][:12], "gt": row["text"][12:]} for row in texts(0, 1)]
    write_lines(folder / "verbmem/forget.jsonl", gone)
    return folder
