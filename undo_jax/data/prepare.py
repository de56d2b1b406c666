"""Pack text once: `prepare` turns a source into a corpus, in parallel and resumably.

Two passes over the shards. The first hashes every document: of equal documents only the first is
kept, and the hash decides between training and validation. The second tokenises and packs. Each
pass over a shard writes its result at its end, so that a run resumes where another was stopped.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from etils import epath
from rich.progress import track

from undo_jax.checks import check_at_least, check_choice, check_share
from undo_jax.data.corpus import MANIFEST, VERSION, Corpus
from undo_jax.data.files import json_hash, reading
from undo_jax.data.packing import cut
from undo_jax.data.row_files import UNFINISHED, open_row_file
from undo_jax.data.shards import (
    COUNTS,
    DUPLICATE,
    SPLITS,
    PackingPlan,
    hash_documents,
    load_hashes,
    pack_documents,
)
from undo_jax.data.sources import Shard
from undo_jax.data.tokenizers import Tokenizer
from undo_jax.data.workers import Job, run_jobs
from undo_jax.logs.log import console
from undo_jax.runtime import device_memory
from undo_jax.runtime.atomic_files import read_json, write_atomically, write_json


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
    """Packs a source into rows of `row_length` + 1 tokens; the same files for any `workers`.

    Of documents with equal text the first is kept. A finished folder of the same settings and
    source is returned as it is, an unfinished one is resumed; sources are equal if the names and
    sizes of their files are.

    Args:
        source: The shards of the text.
        tokenizer: Encodes the documents.
        folder: Where the corpus is written; may be in a bucket.
        row_length: Tokens predicted in a row.
        seed: With a document's text, determines whether it is for validation.
        validation_share: Share of documents for validation; a larger one includes the documents of
            a smaller one.
        joining: "exact" packs every token once, see `packing.cut`: each shard is packed by itself,
            then the leftovers of all, in order; less than a row per split is dropped. "reference"
            joins as the official code does, see `packing.join`: documents of more than 2048 tokens
            are dropped, and the others joined in groups of 1000.
        workers: Processes that pack at once. Several are spawned: a script needs its `__main__`
            guard.

    Raises:
        ValueError: For settings out of range or other than the folder's, a source without text for
            a row in each split, and invalid text.
        OSError: For files that cannot be read, and when a process dies.
    """
    if not source:
        raise ValueError("the source has no shards: give at least one file")
    check_at_least("row_length", row_length, 1)
    device_memory.check_fits(
        f"row_length={row_length}", 4 * (row_length + 1), device_memory.host_bytes()
    )
    if not 0 <= seed < 2**128:
        raise ValueError(f"seed={seed}: it must be at least 0 and below 2^128")
    check_share("validation_share", validation_share)
    check_choice("joining", joining, ("exact", "reference"))
    check_at_least("workers", workers, 1)
    plan = PackingPlan(epath.Path(folder), tokenizer, row_length, seed, joining)
    settings = {
        "tokenizer": {"type": type(tokenizer).__name__, "fingerprint": tokenizer.fingerprint},
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
        "row_length": row_length,
        "dtype": plan.dtype.str,
        "seed": seed,
        "validation_share": validation_share,
        "joining": joining,
        "sources": [
            shard.name if shard.size is None else f"{shard.name}, {shard.size} bytes"
            for shard in source
        ],
    }
    with reading(str(folder)):
        finished = _begin(plan.folder, settings)
    if not finished:
        new = [(i, shard) for i, shard in enumerate(source) if not plan.hashes(i).exists()]
        _run("reading", hash_documents, plan, new, workers)
        splits = _assign_splits(
            [load_hashes(plan, i) for i in range(len(source))], validation_share
        )
        new = [(i, *x) for i, x in enumerate(zip(source, splits, strict=True))]
        new = [job for job in new if not plan.result(job[0]).exists()]
        _run("packing", pack_documents, plan, new, workers)
        _finish(plan, settings, splits)
    (plan.folder / UNFINISHED).rmtree(missing_ok=True)
    return Corpus(str(folder))


def _begin(folder: epath.Path, settings: dict[str, Any]) -> bool:
    """Returns whether the folder is finished; in a new one the plan is written.

    Raises ValueError for a folder of other settings, or with other files.
    """
    finished, plan = (folder / MANIFEST).exists(), folder / UNFINISHED / "plan.json"
    packed = folder.exists() and any(path.name != UNFINISHED for path in folder.iterdir())
    if finished or plan.exists():
        remedy = f"delete {folder}, and pack again"
        old = Corpus(str(folder)).manifest["settings"] if finished else read_json(plan, remedy)
        changed = [name for name, value in settings.items() if old.get(name) != value]
        if not changed:
            return finished
        if packed or list(plan.parent.glob("*[0-9].json")):
            raise ValueError(
                f"{folder} was packed with another {_difference(changed[0], old, settings)}: give "
                "another folder, or delete this one"
            )
        plan.parent.rmtree()  # of a command that packed nothing, e.g. by the name of a field
    if packed:
        raise ValueError(f"{folder} holds other files: give an empty or a new folder")
    plan.parent.mkdir(parents=True, exist_ok=True)
    write_json(plan, settings)
    return False


def _difference(name: str, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Returns a setting that differs and its two values, in brief."""
    if name != "sources":
        return f"{name} ({old.get(name)} and now {new[name]})"
    different = next(iter(set(old[name]) ^ set(new[name])), "their order")
    return f"list of sources ({len(old[name])} and now {len(new[name])}; {different} differs)"


def _run(
    title: str, step: Callable[..., None], plan: PackingPlan, jobs: Sequence[Job], workers: int
) -> None:
    """Runs one pass over the shards of the jobs, with a progress bar."""
    done = run_jobs(step, plan, jobs, workers)
    for _ in track(done, f"{title} shards", len(jobs), console=console):
        pass


def _assign_splits(hashes: Sequence[np.ndarray], share: float) -> list[np.ndarray]:
    """Returns for each shard the split of each document, or DUPLICATE."""
    every = np.concatenate(hashes)
    splits = (every[:, 2] < round(share * 2**64)).astype(np.uint8)
    order = np.lexsort((every[:, 1], every[:, 0]))  # stable: equal documents stay in order
    repeated = (every[order[1:], :2] == every[order[:-1], :2]).all(axis=1)
    splits[order[1:][repeated]] = DUPLICATE
    return np.split(splits, np.cumsum([len(of_shard) for of_shard in hashes])[:-1])


def _finish(plan: PackingPlan, settings: dict[str, Any], splits: Sequence[np.ndarray]) -> None:
    """Packs what is left over, checks that there are rows, and writes the manifest."""
    remedy = f"delete {plan.folder}, and pack again"
    shard_results = [read_json(plan.result(i), remedy) for i in range(len(splits))]
    documents = sum(map(len, splits))
    duplicates = sum(int(np.count_nonzero(of_shard == DUPLICATE)) for of_shard in splits)
    counts: dict[str, Any] = {"documents": documents, "duplicates": duplicates}
    files = {}
    for split in SPLITS if settings["validation_share"] else SPLITS[:1]:
        results = [of_splits[split] for of_splits in shard_results]
        entries = [entry for result in results for entry in result["files"]]
        entries += _pack_rest(plan, split, [result["rest"] for result in results])
        counts[split] = {name: sum(result[name] for result in results) for name in COUNTS}
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
    manifest = {"fingerprint": json_hash(content, sort_keys=True), **content}
    write_atomically(plan.folder / MANIFEST, json.dumps(manifest, indent=1))


def _pack_rest(
    plan: PackingPlan, split: str, rests: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    """Packs the shards' leftovers, in order; returns the file's entry, if there is a row.

    A leftover starts with the last token of its shard's last row, which was a target there; the BOS
    that ends the previous leftover takes its place.
    """
    first, *later = [rest for rest in rests if rest] or [[]]
    pieces = [first, *(rest[1:] for rest in later)]
    rows, _ = cut(np.concatenate([np.array(piece, plan.dtype) for piece in pieces]), plan.length)
    if not len(rows):
        return []
    with open_row_file(plan.folder / f"{split}-rest.array_record") as file:
        file.write(rows)
    return [file.entry()]
