"""The chat template of a Hugging Face folder, as a template of question-answer pairs."""

import json
from datetime import UTC, datetime
from typing import Any, NoReturn

from etils import epath

from undo_jax.data.files import import_optional
from undo_jax.models.hf_folder import local, read_json
from undo_jax.models.hf_special import SETTINGS, read_bos, text_of

TEMPLATE_FILE = "chat_template.jinja"
PLACES = ("{question}", "{answer}")
DAY = datetime(2024, 7, 26, tzinfo=UTC)  # that Llama's template uses if it is told no date


def chat(folder: epath.PathLike, system: str | None = None) -> str:
    """Returns a conversation of one turn in the folder's format, for `Pairs(..., marked=True)`.

    The token that opens a document is left out, for packing puts it there, and a date is always
    that of `DAY`: the same every day.

    Args:
        folder: A Hugging Face folder with a chat template.
        system: The instruction before the user's {question} and the model's {answer}.

    Raises:
        FileNotFoundError: For a folder without tokenizer_config.json.
        ValueError: Where it has no chat template, or one that fails.
        ModuleNotFoundError: Without jinja2.
    """
    folder = local(folder)
    settings = read_json(folder / SETTINGS)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for role, place in zip(("user", "assistant"), PLACES, strict=True):
        messages.append({"role": role, "content": place})
    special = {
        name: text_of(settings.get(name)) or "" for name in ("bos_token", "eos_token", "pad_token")
    }
    text = _render(folder, _read_template(folder, settings), messages=messages, **special)
    text = text.removeprefix(read_bos(folder) or "")
    if [text.count(place) for place in PLACES] != [1, 1]:
        raise ValueError(
            f"{folder}: its chat template does not show a question and its answer once: give "
            "a plain template"
        )
    return text


def _read_template(folder: epath.Path, settings: dict[str, Any]) -> str:
    """Returns the template. Raises ValueError where there is none."""
    file = folder / TEMPLATE_FILE
    template = file.read_text() if file.is_file() else settings.get("chat_template")
    if isinstance(template, list):  # several by name
        entries = (entry for entry in template if isinstance(entry, dict))
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    if not isinstance(template, str):
        raise ValueError(
            f"{folder} has no chat template: give the folder of a model that was trained on "
            "conversations, or a plain template"
        )
    return template


def _render(folder: epath.Path, template: str, **values: Any) -> str:
    """Returns what transformers renders of the template; the code in it is sandboxed."""
    ext, sandbox = (import_optional(f"jinja2.{name}", "jinja2") for name in ("ext", "sandbox"))

    class Generation(ext.Extension):
        """{% generation %} marks the model's answers: its content stays as it is."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> NoReturn:
        raise ValueError(message)

    try:
        jinja = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation]
        )
        jinja.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        jinja.globals |= {"raise_exception": fail, "strftime_now": DAY.strftime}
        return jinja.from_string(template).render(**values, add_generation_prompt=False)
    except Exception as error:  # a template may raise anything
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{folder}: its chat template fails ({message}): give a plain template"
        ) from error
