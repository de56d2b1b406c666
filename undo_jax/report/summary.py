"""The report as Markdown."""

from collections.abc import Mapping

from undo_jax.report import card_tables, speed, tables
from undo_jax.report.numbers import Report, Row


def markdown(report: Report, captions: Mapping[str, str]) -> str:
    """summary.md: figures, the model table, the notes, what was run and every attack."""
    figures = [f"![{name}]({name}.png)\n\n{text}" for name, text in captions.items()]
    told = "\n".join(f"- {note}" for note in tables.notes(report))
    speeds = speed.grid(report)
    blocks = [
        f"# {report.name}",
        told,
        *figures,
        "## Every model\n\n" + tables.markdown_table(tables.model_grid(report)),
        tables.sentence(tables.legend(report)),
        f"## {speed.title(speeds)}\n\n" + tables.markdown_table(speeds),
        speed.legend(report, speeds),
        "## Robustness cards\n\n" + card_tables.legend(report),
        *(_card(report, m) for m in report.attacked),
        "### What each attack searched\n\n" + tables.markdown_table(card_tables.space_grid(report)),
        "## Other scores\n\n" + tables.markdown_table(tables.score_grid(report))
        if report.others
        else "",
        "## What was run\n\n" + tables.markdown_table(tables.stage_grid(report)),
        f"## Every attack\n\n{tables.attack_legend(report)}\n\n"
        + tables.markdown_table(tables.attack_grid(report)),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _card(report: Report, model: Row) -> str:
    """A model's card."""
    grid = tables.markdown_table(card_tables.card_grid(report, model))
    told = "\n".join(f"- {line}" for line in card_tables.told(model))
    return "\n\n".join((f"### {model.name}: {card_tables.headline(model)}", told, grid))
