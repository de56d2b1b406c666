"""How the files of a page reach its folder."""

from collections.abc import Callable, Mapping

from etils import epath

Publish = Callable[[epath.Path, Mapping[str, bytes]], None]  # makes the folder, writes its files


def put(folder: epath.Path, files: Mapping[str, bytes]) -> None:
    """Write files into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
