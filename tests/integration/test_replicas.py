"""Two replicas behind one address: sessions spread, one is killed, every output is the same."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.types import SamplingParams
from tests.integration.processes import Server, edge_running, serving, wait_for_records
from tests.integration.reference import stock_tokens
from tests.models import Pair

ROOT = Path(__file__).parents[2]
PROMPTS = [f"The {number}" for number in range(8)]
TOKENS = 80
SAMPLED = ["--max-new-tokens", str(TOKENS), "--ignore-eos", "--temperature", "0.9", "--seed", "5"]


@pytest.fixture
def replicas(server: Server, tiny_pair: Pair) -> Iterator[tuple[Server, Server]]:
    with serving(tiny_pair.target) as doomed:
        yield server, doomed


@pytest.fixture(scope="module")
def bench(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A bench of as many sessions as there are prompts; lacks a server and a folder."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    shared = ["--draft", str(tiny_pair.draft), "--prompts", str(prompts), "--arms", "speculative"]
    return ["bench", *shared, *SAMPLED]


@contextmanager
def round_robin(replicas: tuple[Server, Server], folder: Path) -> Iterator[str]:
    """Is the client's own: a name with two addresses, as a headless service has."""
    yield "ipv4:" + ",".join(replica.address for replica in replicas)


@contextmanager
def nginx(replicas: tuple[Server, Server], folder: Path) -> Iterator[str]:
    """Runs nginx with deploy/nginx/outrider.conf, on free ports."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        pytest.skip("nginx is not here; install it to test what stands before replicas")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    ours = (ROOT / "deploy" / "nginx" / "outrider.conf").read_text()
    for port, there in (("50050", address), ("50051", replicas[0].address)):
        ours = ours.replace(f"127.0.0.1:{port}", there)
    ours = ours.replace("127.0.0.1:50052", replicas[1].address)
    paths = "".join(
        f"{kind}_temp_path {folder};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{paths}{ours}}}\n"
    )
    command = [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield address
        finally:
            running.terminate()
            running.communicate()


def told(replica: Server, metric: str) -> float:
    """Returns the sum of one of a replica's metrics."""
    with urllib.request.urlopen(f"http://{replica.metrics}/metrics") as page:
        values = re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", page.read().decode(), re.M)
    return sum(map(float, values))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("before", [round_robin, nginx])
def test_sessions_spread_and_a_killed_replica_changes_no_text(
    before: Callable[[tuple[Server, Server], Path], AbstractContextManager[str]],
    replicas: tuple[Server, Server],
    bench: list[str],
    tmp_path: Path,
) -> None:
    kept, doomed = replicas
    opened, running = "outrider_sessions_opened_total", "outrider_num_requests_running"
    opened_before = told(kept, opened)
    with before(replicas, tmp_path) as address:
        out = tmp_path / "behind"
        with edge_running(*bench, "--server", address, "--out", str(out)) as process:
            wait_for_records(out, len(PROMPTS) // 2, process)
            assert told(kept, opened) > opened_before
            assert told(doomed, opened) > 0
            while not told(doomed, running):
                assert process.poll() is None, "no session came to the replica that is to die"
            doomed.kill()
            _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    written = records(out)
    assert [record["error"] for record in written] == [None] * len(PROMPTS)
    assert sum(record["reconnects"] for record in written) > 0
    sampling = SamplingParams(temperature=0.9, seed=5)
    tokens = [stock_tokens(prompt, TOKENS, sampling) for prompt in PROMPTS]
    assert [record["output_token_ids"] for record in written] == tokens
