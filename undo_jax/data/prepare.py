"""Pack text once: `prepare` turns a source into a corpus, in parallel and resumably.

Two passes over the shards. The first hashes every document: of equal documents only the first is
kept, and the hash decides between training and validation. The second tokenises and packs. Each
pass over a shard writes its result at its end, so that a run resumes where another was stopped.
"""

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from etils import epath
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from undo_jax.data.corpus import MANIFEST, VERSION, Corpus, fingerprint
from undo_jax.data.files import reading
from undo_jax.data.packing import cut
from undo_jax.data.shards import (
    DUPLICATE,
    SPLITS,
    WORK,
    Counts,
    Part,
    Plan,
    load_hashes,
    paced,
    pack,
    read,
    start_worker,
    work,
    writing,
)
from undo_jax.data.sources import Shard
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.logs.log import console, format_number
from undo_jax.runtime import device_memory
from undo_jax.runtime.atomic_files import read_json, write_atomically, write_json

Job = tuple[Any, ...]  # arguments of a step after the plan


def prepare(
    source: Sequence[Shard],
    tokenizer: Tokenizer,
    folder: epath.PathLike,
    row_length: int,
    *,
    seed: int = 0,
    validation_share: float = 0.0,
    joining: Literal["exact", "reference"] = "exact",
    workers: int = 1,
) -> Corpus:
    """Pack a source into rows of `row_length` + 1 tokens; the same files for any `workers`.

    Of documents with equal text the first is kept. A hash of text and `seed` decides whether a
    document is for validation; a larger `validation_share` includes the documents of a smaller one.

    "exact" packs every token once, see `packing.cut`: each shard is packed by itself, then the
    leftovers of all, in order; less than a row per split is dropped. "reference" joins as the
    official code does, see `packing.join`: documents of more than 2048 tokens are dropped, and the
    others joined in groups of 1000.

    A finished folder of the same settings and source is returned as it is, an unfinished one is
    resumed; sources are equal if the names and sizes of their files are.
    Several `workers` are spawned processes: a script needs its `__main__` guard.

    Raises ValueError for settings out of range or other than the folder's, a source without text
    for a row in each split, and invalid text; OSError for files that cannot be read, and when a
    process dies.
    """
    _check(source, row_length, seed, validation_share, joining, workers)
    plan = Plan(epath.Path(folder), tokenizer, row_length, seed, joining)
    settings = {
        "tokenizer": {"type": type(tokenizer).__name__, "fingerprint": tokenizer.fingerprint},
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "row_length": row_length,
        "dtype": plan.dtype.str,
        "seed": seed,
        "validation_share": validation_share,
        "joining": joining,
        "sources": [_known_by(shard) for shard in source],
    }
    with reading(str(folder)):
        finished = _begin(plan.folder, settings)
    if not finished:
        parts = [Part(number, shard) for number, shard in enumerate(source)]
        fates = _read(plan, parts, validation_share, workers)
        _pack(plan, parts, fates, workers)
        _finish(plan, parts, settings, fates)
    (plan.folder / WORK).rmtree(missing_ok=True)
    return Corpus(str(folder))


def _check(
    source: Sequence[Shard], length: int, seed: int, share: float, joining: str, workers: int
) -> None:
    if not source:
        raise ValueError("the source has no shards: give at least one file")
    if length < 1:
        raise ValueError(f"row_length is {length}: rows need at least 1 input token")
    device_memory.check_fits(f"row_length={length}", 4 * (length + 1), device_memory.host_bytes())
    if not 0 <= seed < 2**128:
        raise ValueError(f"seed is {seed}: it must be 0 or more, and below 2^128")
    if not 0 <= share < 1:
        raise ValueError(f"validation_share is {share}: give at least 0 and less than 1")
    if joining not in ("exact", "reference"):
        raise ValueError(f"unknown joining {joining!r}: choose exact or reference")
    if workers < 1:
        raise ValueError(f"workers is {workers}: it must be at least 1")


def _known_by(shard: Shard) -> str:
    return shard.name if shard.size is None else f"{shard.name}, {shard.size} bytes"


def _begin(folder: epath.Path, settings: dict[str, Any]) -> bool:
    """Whether the folder is finished; in a new one the plan is written.

    Raises ValueError for a folder of other settings, or with other files.
    """
    finished, plan = (folder / MANIFEST).exists(), folder / WORK / "plan.json"
    packed = [path for path in folder.iterdir() if path.name != WORK] if folder.exists() else []
    if finished or plan.exists():
        again = f"delete {folder}, and pack again"
        known = Corpus(str(folder)).manifest["settings"] if finished else read_json(plan, again)
        other = [name for name, value in settings.items() if known.get(name) != value]
        if not other:
            return finished
        if packed or list(plan.parent.glob("*[0-9].json")):
            raise ValueError(
                f"{folder} was packed with another {_difference(other[0], known, settings)}: give "
                "another folder, or delete this one"
            )
        plan.parent.rmtree()  # of a command that packed nothing, e.g. by the name of a field
    if packed:
        raise ValueError(f"{folder} holds other files: give an empty or a new folder")
    plan.parent.mkdir(parents=True, exist_ok=True)
    write_json(plan, settings)
    return False


def _difference(name: str, known: dict[str, Any], wanted: dict[str, Any]) -> str:
    """A setting that differs and its two values, in brief."""
    if name == "sources":
        old, new = known[name], wanted[name]
        only = next(iter([*(set(old) ^ set(new))]), "their order")
        return f"list of sources ({len(old)} and now {len(new)}; {only} differs)"
    return f"{name} ({known.get(name)} and now {wanted[name]})"


def _read(plan: Plan, parts: Sequence[Part], share: float, workers: int) -> list[np.ndarray]:
    """The first pass: for each shard, the split of each document, or DUPLICATE."""
    todo = [(part,) for part in parts if not part.hashes(plan.folder).exists()]
    before = len(parts) - len(todo)
    with _bar("reading", len(parts)) as show:
        for shards, documents, _ in _run(read, plan, todo, workers):
            show(before + shards, f"{before + shards}/{len(parts)} shards, {documents} documents")
    hashes = [load_hashes(plan.folder, part) for part in parts]
    every = np.concatenate(hashes)
    fates = (every[:, 2] < round(share * 2**64)).astype(np.uint8)
    order = np.lexsort((every[:, 1], every[:, 0]))  # stable: equal documents stay in order
    again = (every[order[1:], :2] == every[order[:-1], :2]).all(axis=1)
    fates[order[1:][again]] = DUPLICATE
    return np.split(fates, np.cumsum([len(own) for own in hashes])[:-1])


def _pack(plan: Plan, parts: Sequence[Part], fates: Sequence[np.ndarray], workers: int) -> None:
    """The second pass: rows of each shard."""
    wanted = [len(fate) - _duplicates(fate) for fate in fates]
    todo = [part for part in parts if not part.packed(plan.folder).exists()]
    jobs = [(part, fates[part.number]) for part in todo]
    total = sum(wanted)
    before = total - sum(wanted[part.number] for part in todo)
    start = time.monotonic()
    with _bar("packing", total) as show:
        for _, documents, tokens in _run(pack, plan, jobs, workers):
            rate = format_number(tokens / max(time.monotonic() - start, 1e-3))
            show(before + documents, f"{before + documents}/{total} documents, {rate} tok/s")


def _finish(
    plan: Plan, parts: Sequence[Part], settings: dict[str, Any], fates: Sequence[np.ndarray]
) -> None:
    """Pack what is left over, check that there are rows, and write the manifest."""
    again = f"delete {plan.folder}, and pack again"
    results = [read_json(part.packed(plan.folder), again) for part in parts]
    documents, duplicates = sum(map(len, fates)), sum(map(_duplicates, fates))
    counts: dict[str, Any] = {"documents": documents, "duplicates": duplicates}
    files = {}
    for split in SPLITS if settings["validation_share"] else SPLITS[:1]:
        own = [result[split] for result in results]
        entries = [entry for result in own for entry in result["files"]]
        entries += _pack_rest(plan, split, [result["rest"] for result in own])
        counts[split] = {
            name: sum(result[name] for result in own)
            for name in ("documents", "tokens", "too_long")
        }
        rows = sum(entry["rows"] for entry in entries)
        counts[split] |= {"rows": rows, "tokens_in_rows": rows * plan.length}
        files[split] = entries
        if not rows:
            plan.folder.rmtree()
            raise ValueError(
                f"the {split} split of {documents} documents has {counts[split]['tokens']} tokens "
                f"and a row takes {plan.length + 1}: give more text, a shorter row_length or "
                "another validation_share"
            )
    content = {"version": VERSION, "settings": settings, "counts": counts, "files": files}
    marked = {"fingerprint": fingerprint(content), **content}
    write_atomically(plan.folder / MANIFEST, json.dumps(marked, indent=1))


def _duplicates(fate: np.ndarray) -> int:
    return int(np.count_nonzero(fate == DUPLICATE))


def _pack_rest(plan: Plan, split: str, rests: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Pack the shards' leftovers, in order; the file's manifest entry, if there is a row.

    A leftover starts with the last token of its shard's last row, which was a target there; the BOS
    that ends the previous leftover takes its place.
    """
    first, *later = [rest for rest in rests if rest] or [[]]
    pieces = [first, *(rest[1:] for rest in later)]
    rows, _ = cut(np.concatenate([np.array(piece, plan.dtype) for piece in pieces]), plan.length)
    if not len(rows):
        return []
    with writing(plan.folder / f"{split}-rest.array_record") as file:
        file.write(rows)
    return [file.entry()]


def _run(
    step: Callable[..., Counts], plan: Plan, jobs: Sequence[Job], workers: int
) -> Iterator[tuple[int, int, int]]:
    """Run the jobs; yields from time to time how many are done, and their documents and tokens."""
    if workers == 1 or len(jobs) < 2:
        documents = tokens = 0
        for done, job in enumerate(jobs, start=1):
            for more in paced(step(plan, *job)):
                documents, tokens = documents + more[0], tokens + more[1]
                yield done - 1, documents, tokens
        yield len(jobs), documents, tokens
        return
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", 3)  # documents, tokens, whether to stop
    seen = shared.get_obj()  # without the lock, which a dead process might still hold
    processes = ProcessPoolExecutor(min(workers, len(jobs)), context, start_worker, (plan, shared))
    with processes as pool:
        try:
            with _uninterrupted():  # this process, and workers until they are ready for Ctrl-C
                pending = {pool.submit(work, step, job) for job in jobs}
            while pending:
                done, pending = wait(pending, 0.2, FIRST_COMPLETED)
                for future in done:
                    future.result()
                yield len(jobs) - len(pending), seen[0], seen[1]
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process died, perhaps for lack of memory: the same command goes on, "
                "with fewer workers if you like"
            ) from error
        finally:
            seen[2] = 1
            pool.shutdown(cancel_futures=True)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Block Ctrl-C in the block; in processes started in it, until they unblock it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar with a text; narrower than 80 columns."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, said="")
        yield lambda done, said: bar.update(task, completed=done, said=said)
