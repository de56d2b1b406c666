"""What deploy/ names is there, and the job's hosts and chips are those of its slice."""

import math
import re
from fnmatch import fnmatch

from documents import ROOT, job_of

from undo_jax.runtime.mesh import axis_sizes, parse_mesh

LINES = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
COPIED = [word for line in LINES if line.startswith("COPY ") for word in line.split()[1:-1]]


def test_the_image_has_the_files_that_installation_needs():
    assert COPIED and all((ROOT / name).exists() for name in COPIED)
    about = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r'^readme = "(.*)"', about, re.MULTILINE)[1], "LICENSE", "experiments"
    assert {*needed, "pyproject.toml", "undo_jax", "constraints.txt"} == {*COPIED}
    (install,) = (line for line in LINES if line.startswith("RUN pip install"))
    assert "--constraint constraints.txt" in install
    assert LINES.index(install) > max(i for i, line in enumerate(LINES) if line[:4] == "COPY")


def test_what_is_copied_is_not_ignored():
    """Docker reads the lines one after the other, and the last one that matches counts."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    ignored = {}
    for name in (*COPIED, ".git", "runs", "docs", ".venv"):
        for rule in rules:
            if fnmatch(name, rule.removeprefix("!")):
                ignored[name] = not rule.startswith("!")
    assert {name for name, gone in ignored.items() if not gone} == {*COPIED}


def test_the_job_is_one_host_for_each_part_of_its_slice():
    job = job_of(ROOT / "deploy" / "jobset.yaml")
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = math.prod(map(int, sides))
    asked = container["resources"]
    assert asked["limits"] == asked["requests"]
    assert job["parallelism"] == job["completions"]
    assert int(asked["limits"]["google.com/tpu"]) * job["parallelism"] == chips
    (mesh,) = (word for word in container["args"] if word.startswith("--mesh="))
    axis_sizes(parse_mesh(mesh.removeprefix("--mesh=")), chips)
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
