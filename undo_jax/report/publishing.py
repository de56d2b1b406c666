"""How the files of a page are written."""

from collections.abc import Callable, Mapping

from etils import epath

Publish = Callable[[epath.Path, Mapping[str, bytes]], None]  # makes the folder, writes its files


def put(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    """Writes files, by their names, into a folder, which it makes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
