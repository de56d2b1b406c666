"""What is known of a compiled step: as JSON, and as a table."""

from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from undo_jax.fit import chips
from undo_jax.fit.cached import per_token
from undo_jax.fit.chips import Slice
from undo_jax.fit.overlap import overlap
from undo_jax.fit.roofline import roofline
from undo_jax.fit.step import Step, rows_per_chip, rows_per_shard
from undo_jax.logs.log import format_number, format_seconds
from undo_jax.runtime.device_memory import format_bytes
from undo_jax.training.programs import TrainSpec


def describe(work: TrainSpec, place: Slice, mesh: Mesh, step: Step) -> dict[str, Any]:
    """All that is known of a step, as JSON; no speed if it does not fit."""
    facts = {
        "topology": str(place),
        "chips": place.chips,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "members": mesh.shape["sweep"],  # models side by side, each with rows of its own
        "rows": work.training.batch_size,  # of each member
        "rows_per_chip": rows_per_chip(work.training, mesh),  # its share of the work
        "rows_per_shard": rows_per_shard(work.training, mesh),  # that chips along `tensor` share
        "accumulation": work.training.accumulation,
        "row_length": work.row_length,
        "remat": getattr(work.lm, "remat", "none"),
        "fits": step.cost is not None,
        "hbm": {
            **vars(step.memory),
            "shared": step.memory.shared,
            "total": step.memory.total,
            "available": place.chip.hbm,
        },
    }
    if step.cost is None:
        return facts
    line, token = roofline(step.cost, place.chip), per_token(work)
    cached = token and {"flops": token.stored / token.beside, "bytes_per_token": token.bytes}
    return facts | {
        "flops": step.cost.flops,
        "memory_bytes": step.cost.memory,
        "collective_bytes": dict(step.cost.collectives),
        "hidden_bytes": dict(overlap(step.text).hidden) if step.text else {},  # beside products
        "seconds": {**line._asdict(), "step": line.seconds},
        "bound": line.bound(place.chip),
        "tokens_per_second": mesh.shape["sweep"] * work.tokens / line.seconds,
        "cached_teacher": cached,  # with --cache-teachers, a share of the FLOPs
    }


def table(facts: Mapping[str, Any]) -> str:
    """What `describe` found, in 80 columns."""
    sizes = facts["hbm"]
    hbm = {name: format_bytes(abs(size)) for name, size in sizes.items()}
    mesh = ",".join(f"{axis}={size}" for axis, size in facts["mesh"].items()) or "of one chip"
    verdict = "fits" if facts["fits"] else "DOES NOT FIT"
    lines = [
        f"{facts['stage']} of {facts['experiment']} on {facts['topology']}: "
        f"{facts['chips']} chips, mesh {mesh}",
        *which(facts),
        rows(facts),
        "",
        f"HBM of a chip   {hbm['total']} of {hbm['available']}: {verdict}",
        f"  arguments     {hbm['arguments']}",
        f"  temporaries   {hbm['temporaries']}",
    ]
    if sizes["aliased"]:  # unknown for a program that the compiler refuses
        lines[-2] += f", {hbm['aliased']} of it updated in place"
        lines.append(f"  other         {hbm['outputs']} outputs, {hbm['code']} program")
    if sizes["shared"] > 0:
        lines.append(f"  not at once  -{hbm['shared']}: some take the place of what is done with")
    elif sizes["shared"] < 0:
        lines.append(f"  in VMEM       {hbm['shared']}: alive as well, but not in HBM")
    if not facts["fits"]:
        return "\n".join(lines)
    seconds = {name: f"{format_seconds(value):>8}" for name, value in facts["seconds"].items()}
    received, hidden = facts["collective_bytes"], facts["hidden_bytes"]
    beside = {
        kind: f", {format_number(size)}B of it beside products"
        for kind, size in hidden.items()
        if size
    }
    names = [f"{name:<14}" for name in chips.find(facts["topology"]).chip.parts]
    lines += [
        "A step, at the chip's peak",
        f"  {names[0]}{seconds['mxu']}   {format_number(facts['flops'])} FLOPs",
        f"  {names[1]}{seconds['hbm']}   {format_number(facts['memory_bytes'])}B read or written",
        f"  {names[2]}{seconds['ici']}   {format_number(sum(received.values()))}B received",
        *(f"    {k:<23}{format_number(received[k])}B{beside.get(k, '')}" for k in sorted(received)),
        f"bound by {facts['bound']}: at most {format_number(facts['tokens_per_second'])} tokens/s",
    ]
    if cached := facts["cached_teacher"]:
        read = format_number(cached["bytes_per_token"])
        lines.append(
            f"--cache-teachers: {cached['flops']:.0%} of the FLOPs, {read}B a token stored and read"
        )
    return "\n".join(lines)


def which(facts: Mapping[str, Any]) -> list[str]:
    """Whose program it is, in a line, where its stage has several."""
    if facts.get("programs", 1) == 1:
        return []
    name, *further = facts["models"]
    more = f" and {len(further)} more" if further else ""
    return [f"of {name}{more}: the largest of this stage's {facts['programs']} programs"]


def rows(facts: Mapping[str, Any]) -> str:
    """The line of a table that says how the rows of a step are spread."""
    text = f"{facts['rows']} rows of {facts['row_length']} tokens"
    if facts["members"] > 1:
        text = f"{facts['members']} models, each on {text}"
    share = [f"{format_number(facts['rows_per_chip'])} a chip"]
    if sharing := facts["mesh"].get("tensor"):
        share.append(f"{sharing} chips share {facts['rows_per_shard']}")
    if facts["accumulation"] > 1:
        share.append(f"{facts['accumulation']} parts")
    return f"{text} ({', '.join(share)}), remat {facts['remat']}"
