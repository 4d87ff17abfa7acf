"""`make wheel-test`: README.md and docs/running.md typed into fresh environments, line by line.

What each side needs is installed from the package index, as the documents say.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(
    r"(<!-- not run: [^\n]+ -->\n)?^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
HERE = {
    "path/to/target": "demo/target",
    "path/to/draft": "demo/draft",
    "path/to/uplink": "link.trace",
    "path/to/downlink": "link.trace",
    "gpu-node": "localhost",
    "node-a": "localhost",
    "node-b": "localhost",
}
SHORT = " --limit 1 --max-new-tokens 16"
GPU_PACKAGES = re.compile(r"^(nvidia|triton|cuda|nccl|cupy)", re.MULTILINE)


def commands(document: str) -> list[str]:
    """Returns what a document says to type and does not mark as not run here, for this machine."""
    found = []
    for marked, block in BLOCK.findall((ROOT / document).read_text()):
        if not marked:
            lines = block.replace("\\\n", " ").splitlines()
            found += [line[2:] for line in lines if line.startswith("$ ")]
    for place, here in HERE.items():
        found = [line.replace(place, here) for line in found]
    torch = os.environ.get("TORCH", "torch==2.13.0")
    found = [line.replace("install torch==2.13.0", f"install {torch}") for line in found]
    return [line + SHORT if " bench " in line else line for line in found]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is committed or about to be, with nothing installed."""
    folder = tmp_path_factory.mktemp("fresh") / "outrider"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "link.trace").write_text("".join(f"{ms}\n" for ms in range(1, 1001)))
    return folder


class Terminal:
    """Types lines into a fresh environment; what serves stays until its address is wanted again."""

    def __init__(self, checkout: Path, stack: ExitStack) -> None:
        self._cwd = checkout
        self._stack = stack
        self._serving: dict[str, subprocess.Popen[str]] = {}
        kept = {"PATH", "HOME", "LANG"}
        self._environment = {
            key: value
            for key, value in os.environ.items()
            if key in kept or key.startswith(("PIP_", "SSL_"))
        } | {"OMP_NUM_THREADS": "1"}
        self._path = self._environment["PATH"]

    def type(self, line: str) -> None:
        words = shlex.split(line)
        side = "cloud-env" if words[0] == "outrider-cloud" else "edge-env"
        self._environment["PATH"] = f"{self._cwd / side / 'bin'}:{self._path}"
        if words[:2] == ["outrider-cloud", "serve"] or words[0] == "outrider-link":
            self._serve(words)
            return
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self._cwd,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}"

    def _serve(self, words: list[str]) -> None:
        program = words[0]
        if program in self._serving:
            self._serving[program].terminate()
            assert self._serving[program].wait(60) == 0, shlex.join(words)
        log = self._stack.enter_context((self._cwd / f"{program}.log").open("a"))
        process = self._stack.enter_context(
            subprocess.Popen(
                words,
                cwd=self._cwd,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        )
        self._stack.callback(process.terminate)
        self._serving[program] = process
        assert process.stdout is not None
        assert process.stdout.readline().startswith("READY "), Path(log.name).read_text()


@pytest.fixture(scope="module")
def terminal(checkout: Path) -> Iterator[Terminal]:
    with ExitStack() as stack:
        yield Terminal(checkout, stack)


@pytest.fixture(scope="module")
def installed(terminal: Terminal) -> None:
    for line in commands("docs/running.md"):
        if "pip install" in line or " -m venv " in line:
            terminal.type(line)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("document", ["docs/running.md", "README.md"])
def test_every_command_does_what_its_page_says(terminal: Terminal, document: str) -> None:
    typed = [line for line in commands(document) if "-env" not in line]
    if document == "README.md":
        typed = [line.replace(" certs ", " certs-of-readme ") for line in typed]
    assert len(typed) > 5
    for line in typed:
        terminal.type(line)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("side", "without"),
    [
        ("edge-env", r"^(grpcio-health-checking|grpcio-reflection|prometheus|sacrebleu)"),
        ("cloud-env", r"^(sacrebleu|rouge|nltk)"),
    ],
)
def test_a_side_has_no_packages_of_the_other_s(checkout: Path, side: str, without: str) -> None:
    pip = [str(checkout / side / "bin" / "pip"), "freeze"]
    packages = subprocess.run(pip, capture_output=True, text=True, check=True).stdout
    assert "outrider" in packages
    assert not re.search(without, packages, re.MULTILINE), packages
    # The cloud's depend on the build of PyTorch; the edge is given the one for CPUs.
    assert side == "cloud-env" or not GPU_PACKAGES.search(packages), packages


@pytest.mark.usefixtures("installed")
def test_the_edge_s_environment_says_what_a_server_needs(checkout: Path) -> None:
    serve = [
        str(checkout / "edge-env" / "bin" / "outrider-cloud"),
        "serve",
        "--model",
        "demo/target",
    ]
    done = subprocess.run(serve, cwd=checkout, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'outrider[cloud]'" in done.stderr
