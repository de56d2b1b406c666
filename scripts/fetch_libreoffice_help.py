"""Real English and Korean text without an account: the help pages of LibreOffice (MPL-2.0).

    python scripts/fetch_libreoffice_help.py data/libreoffice_help

downloads the Debian packages libreoffice-help-en-us and libreoffice-help-ko, unpacks them (nothing
is installed) and writes english.jsonl and korean.jsonl, a page a line: {"text": ...}. Paragraphs
that a page shares with an earlier one are dropped, and so are those of the Korean pages that are
not translated. Needs apt-get and dpkg-deb; nothing but the standard library.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

PACKAGES = {"english": "libreoffice-help-en-us", "korean": "libreoffice-help-ko"}
BLOCKS = {"h1", "h2", "h3", "h4", "h5", "h6", "p", "li", "td", "th", "div", "pre"}
HANGUL = re.compile("[가-힣]")
LETTER = re.compile(r"[^\W\d_]")
KOREAN = 0.4  # least share of Hangul among a Korean paragraph's letters; names stay Latin


class Page(HTMLParser):
    """The paragraphs of a help page's main part."""

    def __init__(self):
        super().__init__()
        self.paragraphs: list[str] = []
        self.depth = 0  # of <div>, counted from the main part; 0 is outside
        self.hidden = 0  # inside <script> or <noscript>
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "noscript"):
            self.hidden += 1
        if tag == "div" and (self.depth or ("id", "DisplayArea") in attrs):
            self.depth += 1
        if tag in BLOCKS:
            self.end_paragraph()

    def handle_endtag(self, tag):
        if tag in BLOCKS:
            self.end_paragraph()
        if tag in ("script", "noscript"):
            self.hidden -= 1
        if tag == "div" and self.depth:
            self.depth -= 1

    def handle_data(self, data):
        if self.depth and not self.hidden:
            self.words.append(data)

    def end_paragraph(self):
        text = " ".join("".join(self.words).split())
        if text:
            self.paragraphs.append(text)
        self.words = []


def pages(folder: Path) -> Iterator[list[str]]:
    """The paragraphs of every page, in the order of the pages' names."""
    for path in sorted(folder.rglob("text/**/*.html")):
        page = Page()
        page.feed(path.read_text(encoding="utf-8"))
        yield page.paragraphs


def is_in_language(language: str, paragraph: str) -> bool:
    """Whether a paragraph is in its language."""
    hangul, letters = len(HANGUL.findall(paragraph)), len(LETTER.findall(paragraph))
    return hangul >= KOREAN * letters > 0 if language == "korean" else letters > 0 == hangul


def documents(language: str, folder: Path) -> Iterator[str]:
    """Pages as text, without the paragraphs that an earlier page has."""
    seen: set[str] = set()
    for paragraphs in pages(folder):
        new_paragraphs = [
            p for p in dict.fromkeys(paragraphs) if p not in seen and is_in_language(language, p)
        ]
        seen.update(new_paragraphs)
        if new_paragraphs:
            yield "\n".join(new_paragraphs)


def fetch(package: str, folder: Path) -> None:
    """Download and unpack a package into an empty folder."""
    for command in (["apt-get", "download", package], ["dpkg-deb", "-x", "*.deb", "unpacked"]):
        command = [str(next(folder.glob(word))) if "*" in word else word for word in command]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(
                f"{' '.join(command[:2])}: {(done.stderr.strip() or 'failed').splitlines()[0]}"
            )


def main(target: Path) -> None:
    """Write english.jsonl and korean.jsonl into the target folder."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not there: run this on Debian or Ubuntu, then copy {target}")
    target.mkdir(parents=True, exist_ok=True)
    for language, package in PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            fetch(package, Path(folder))
            texts = list(documents(language, Path(folder) / "unpacked"))
        if not texts:
            sys.exit(f"{package} holds no {language} pages: has its layout changed?")
        written = target / f"{language}.jsonl.tmp"
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        written.write_text("".join(lines), encoding="utf-8")
        written.rename(target / f"{language}.jsonl")
        print(f"{language}: {len(texts):,} pages, {sum(map(len, texts)):,} characters")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python scripts/fetch_libreoffice_help.py TARGET_FOLDER")
    main(Path(sys.argv[1]))
