"""A Slurm of two nodes on this machine: one controller and two slurmd, under one folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "sinfo")
PATIENCE_SECONDS = 100.0
POLL_SECONDS = 0.1

CONFIGURATION = """\
ClusterName=outrider
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
GresTypes=gpu
NodeName=gpu-node NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 Gres=gpu:1
NodeName=cpu-node NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=gpu-node,cpu-node Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """Is a running cluster; jobs see this interpreter's programs, and `RUN`."""

    environment: dict[str, str]

    def __call__(self, *command: str) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, env=self.environment, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def submit(self, *arguments: str) -> str:
        return self("sbatch", "--parsable", *arguments).split(";")[0]

    def fields(self, job: str) -> dict[str, str]:
        """Returns what scontrol knows of a job, or of the first component of one."""
        words = self("scontrol", "show", "job", "--oneliner", job).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str) -> None:
        """Waits until a job is in one of these states; shows it when it ends in another."""
        ended = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        until = time.monotonic() + PATIENCE_SECONDS
        while (state := self.fields(job)["JobState"]) not in states:
            log = Path(self.fields(job)["StdOut"])
            said = log.read_text() if log.exists() else "nothing written"
            assert state not in ended, f"job {job} is {state}: {said}"
            assert time.monotonic() < until, f"job {job} is still {state}: {said}"
            time.sleep(POLL_SECONDS)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """Runs the three daemons for the length of a `with` block."""
    for program in PROGRAMS:
        assert shutil.which(program), f"{program} is not here; install slurmctld and slurmd"
    host = socket.gethostname().split(".")[0]
    (folder / "state").mkdir()
    configuration = CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(3))
    (folder / "slurm.conf").write_text(configuration)
    # A card that is none: jobs that ask for one are put on this node.
    (folder / "gres.conf").write_text("NodeName=gpu-node Name=gpu File=/dev/null\n")
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": programs}
    daemons = [["slurmctld", "-D"], *(["slurmd", "-D", "-N", n] for n in ("gpu-node", "cpu-node"))]
    with ExitStack() as stack:
        for number, command in enumerate(daemons):
            log = stack.enter_context((folder / f"daemon-{number}.log").open("w"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(daemon.wait)
            stack.callback(daemon.terminate)
        slurm = Slurm(environment)
        _until_idle(slurm, folder)
        yield slurm
        slurm("scancel", "--user=root")


def _until_idle(slurm: Slurm, folder: Path) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%T"],
            capture_output=True,
            text=True,
            env=slurm.environment,
            check=False,
        )
        if asked.stdout.split() == ["idle", "idle"]:
            return
        logs = "".join(log.read_text() for log in folder.glob("daemon-*.log"))
        assert time.monotonic() < until, asked.stdout + asked.stderr + logs
        time.sleep(POLL_SECONDS)
