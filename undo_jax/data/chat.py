"""The chat template of a Hugging Face folder, as a template of question-answer pairs."""

import json
from datetime import UTC, datetime
from typing import Any, NoReturn

from etils import epath

from undo_jax.data.files import missing
from undo_jax.models.hf_folder import local, read_json
from undo_jax.models.hf_special import SETTINGS, read_bos, text_of

OWN_FILE = "chat_template.jinja"
PLACES = ("{question}", "{answer}")
DAY = datetime(2024, 7, 26, tzinfo=UTC)  # what Llama's template calls today if nobody says


def chat(folder: epath.PathLike, system: str | None = None) -> str:
    """A conversation of one turn in the folder's format, for `Pairs(..., marked=True)`.

    It is what the folder's chat template makes of the user's {question} and the model's {answer},
    after an instruction of the `system` if there is one. The token that opens a document is left
    out, for packing puts it there, and a date is always that of `DAY`: the same every day.

    Raises FileNotFoundError for a folder without tokenizer_config.json, ValueError where it has no
    chat template, or one that fails, and ModuleNotFoundError without jinja2.
    """
    folder = local(folder)
    settings = read_json(folder / SETTINGS)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for role, place in zip(("user", "assistant"), PLACES, strict=True):
        messages.append({"role": role, "content": place})
    special = {
        name: text_of(settings.get(name)) or "" for name in ("bos_token", "eos_token", "pad_token")
    }
    made = _rendered(folder, _source(folder, settings), messages=messages, **special)
    made = made.removeprefix(read_bos(folder) or "")
    if [made.count(place) for place in PLACES] != [1, 1]:
        raise ValueError(
            f"{folder}: its chat template does not show a question and its answer once: give "
            "a plain template"
        )
    return made


def _source(folder: epath.Path, settings: dict[str, Any]) -> str:
    """The template. Raises ValueError where there is none."""
    own = folder / OWN_FILE
    found = own.read_text() if own.is_file() else settings.get("chat_template")
    if isinstance(found, list):  # several by name
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    if not isinstance(found, str):
        raise ValueError(
            f"{folder} has no chat template: give the folder of a model that was trained on "
            "conversations, or a plain template"
        )
    return found


def _rendered(folder: epath.Path, source: str, **values: Any) -> str:
    """The template with these values, as transformers renders it; the code in it is sandboxed."""
    try:
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError:
        raise missing("jinja2") from None

    class Generation(Extension):
        """{% generation %} marks what the model says: that stays as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> NoReturn:
        raise ValueError(message)

    try:
        jinja = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
        )
        jinja.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        jinja.globals |= {"raise_exception": fail, "strftime_now": DAY.strftime}
        return jinja.from_string(source).render(**values, add_generation_prompt=False)
    except Exception as error:  # a template may raise anything
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{folder}: its chat template fails ({said}): give a plain template"
        ) from error
