"""Visitors who ask a demo's server at once: `python benchmarks/demo_load.py RUN [--clients 50]`.

Starts `undo-jax demo RUN --serve`. Each visitor asks as soon as the last reply is there: prompts
made of two examples' pieces, mostly new, at any attack step. Printed are answers, failures, times
of answers and the server's memory. Needs the extra `demo`, and /proc for the memory.
"""

import argparse
import collections
import http.client
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


def memory(process: int) -> int:
    """Resident, in MiB."""
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())
    return int(match[1]) // 1024 if match else 0


def ready(port: int, server: subprocess.Popen) -> dict[str, Any]:
    """What the page says of itself, once the server answers."""
    while server.poll() is None:
        try:
            connection = http.client.HTTPConnection(HOST, port, timeout=60)
            connection.request("GET", "/")
            page = connection.getresponse().read().decode()
            return json.loads(page.split('id="data">')[1].split("</script>")[0])
        except OSError:
            time.sleep(0.2)
    raise SystemExit("the server has not started")


def question(draw: random.Random, data: dict[str, Any]) -> dict[str, Any]:
    first_example, last_example = (draw.choice(data["examples"]) for _ in range(2))
    first, last = (
        draw.randint(1, len(example["prompt"])) for example in (first_example, last_example)
    )
    prompt = first_example["prompt"][:first] + last_example["prompt"][-last:]
    return {"prompt": prompt, "answer": last_example["answer"], "step": draw.choice(data["steps"])}


def visit(number: int, port: int, data: dict[str, Any], end: float, outcomes: list) -> None:
    """Ask until `end`; tells seconds and what came: "answered", a status, or an exception."""
    draw = random.Random(number)
    while (began := time.monotonic()) < end:
        connection = http.client.HTTPConnection(HOST, port, timeout=60)
        try:
            body = json.dumps(question(draw, data))
            connection.request("POST", "/answers", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            content = json.loads(reply.read())
            whole = len(content.get("replies", ())) == len(data["models"])
            came = "answered" if whole else str(reply.status)
        except (OSError, http.client.HTTPException, ValueError) as error:
            came = repr(error)
        finally:
            connection.close()
        outcomes.append((time.monotonic() - began, came))


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", help="a workdir with a finished run")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--port", type=int, default=8123)
    options = parser.parse_args()
    words = ["demo", options.run, "--serve", "--port", str(options.port)]
    with subprocess.Popen([sys.executable, "-m", "undo_jax", *words]) as server:
        try:
            data = ready(options.port, server)
            visit(0, options.port, data, time.monotonic() + 5, [])  # each step's models are loaded
            before, outcomes = memory(server.pid), []
            end = time.monotonic() + options.seconds
            visitors = [
                threading.Thread(target=visit, args=(number, options.port, data, end, outcomes))
                for number in range(options.clients)
            ]
            for visitor in visitors:
                visitor.start()
            highest = before
            while any(visitor.is_alive() for visitor in visitors):
                time.sleep(1)
                highest = max(highest, memory(server.pid))
        finally:
            server.send_signal(signal.SIGINT)
    seconds = sorted(taken for taken, _ in outcomes)
    middle, slow = (seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.95))
    came = ", ".join(
        f"{count} {outcome}"
        for outcome, count in collections.Counter(c for _, c in outcomes).items()
    )
    print(f"{options.clients} visitors, {options.seconds:g} s: {came}")
    print(f"median {middle:.2f} s, p95 {slow:.2f} s, slowest {seconds[-1]:.2f} s")
    print(f"memory {before} MiB before, {highest} MiB at most")


if __name__ == "__main__":
    main()
