"""`deploy/netem.sh`: what it asks of the kernel, and what it says when it cannot; needs no root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.relay.netem import loss, main, netem
from edge_client.relay.profiles import PROFILES
from edge_client.relay.shape import Delays, Shape

SCRIPT = Path(__file__).parents[2] / "deploy" / "netem.sh"


class Machine:
    """Stands in for tc, ip and id: notes what is asked, and fails where it is told to."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.log.touch()
        self.user = 0
        self.refuses = "nothing"
        self.devices = "eth0"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        refused = f'case "$*" in *"{self.refuses}"*) echo refused >&2; exit 2 ;; esac\n'
        known = f'case "$*" in "link show dev "*) case " {self.devices} " in\n'
        known += '*" $4 "*) exit 0 ;; esac; exit 1 ;; esac\n'
        scripts = {
            "tc": f'echo "tc $*" >>{self.log}\n{refused}',
            "ip": f'{known}echo "ip $*" >>{self.log}\n{refused}',
            "id": f"echo {self.user}\n",
        }
        for name, text in scripts.items():
            file = self.bin / name
            file.write_text(f"#!/bin/sh\n{text}")
            file.chmod(0o755)
        environment = os.environ | {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
        }
        return subprocess.run(
            ["sh", str(SCRIPT), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )

    @property
    def asked(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


UNDONE = ["tc qdisc del dev eth0 root", "tc qdisc del dev eth0 ingress", "ip link del ifb-outrider"]


def test_it_is_a_script_that_bash_reads_too() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_each_way_gets_its_half_of_the_link(machine: Machine) -> None:
    done = machine.run("start", "eth0", "--rtt", "50ms", "--up", "5mbit", "--down", "20mbit")
    assert done.returncode == 0, done.stderr
    assert machine.asked == [
        "tc qdisc add dev eth0 root netem delay 25000us rate 5000000bit limit 186",
        "ip link add ifb-outrider type ifb",
        "ip link set ifb-outrider up",
        "tc qdisc add dev eth0 ingress",
        "tc filter add dev eth0 parent ffff: protocol all matchall "
        "action mirred egress redirect dev ifb-outrider",
        "tc qdisc add dev ifb-outrider root netem delay 25000us rate 20000000bit limit 217",
    ]


def test_a_profile_is_outrider_link_s(machine: Machine) -> None:
    done = machine.run("start", "eth0", "--profile", "4g-lte", "--loss-burst", "0.1:20")
    up, down = PROFILES["4g-lte"]
    lossy = " loss gemodel 0.1% 20%"
    assert done.stdout == f"up {netem(up)}{lossy}\ndown {netem(down)}{lossy}\n"
    assert machine.asked[0] == f"tc qdisc add dev eth0 root netem {netem(up)}{lossy}"


def test_stop_takes_everything_back_and_status_asks_alone(machine: Machine) -> None:
    assert machine.run("stop", "eth0").returncode == 0
    assert machine.asked == UNDONE
    assert machine.run("status", "eth0").returncode == 0
    assert machine.asked[3:] == ["tc -s qdisc show dev eth0"]


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        ("root netem", "no sch_netem"),
        ("type ifb", "no ifb devices"),
        ("eth0 ingress", "no sch_ingress"),
        ("matchall", "cannot be redirected"),
    ],
)
def test_a_kernel_that_cannot_is_named_and_nothing_is_left(
    machine: Machine, refused: str, said: str
) -> None:
    machine.refuses = refused
    done = machine.run("start", "eth0", "--profile", "200ms")
    assert done.returncode == 1
    assert said in done.stderr
    assert "refused; nothing is left of the link" in done.stderr
    assert machine.asked[-3:] == UNDONE


def test_only_root_and_only_one_link(machine: Machine) -> None:
    machine.devices = "eth0 ifb-outrider"
    done = machine.run("start", "eth0", "--profile", "200ms")
    assert "a link is there already; stop it first" in done.stderr
    machine.user = 1000
    for command in (["start", "eth0", "--profile", "200ms"], ["stop", "eth0"]):
        done = machine.run(*command)
        assert (done.returncode, "only root" in done.stderr) == (1, True)
    assert machine.asked == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: deploy/netem.sh start|stop|status INTERFACE"),
        (["start"], "usage: "),
        (["restart", "eth0"], "there is no 'restart'"),
        (["stop", "eth0", "--rtt", "5ms"], "leave out --rtt 5ms"),
        (["start", "eth0"], "nothing says which link"),
        (["start", "eth0", "--profile", "5g"], "no link profile '5g'; choose from loopback"),
        (["start", "eth0", "--profile", "lan", "--rtt", "5ms"], "--profile says all of a link"),
        (["start", "eth0", "--rtt", "5"], "'5' is not a time"),
        (["start", "eth0", "--rtt", "5ms", "--loss-burst", "0:20"], "--loss-burst '0:20'"),
        (["start", "eth9", "--rtt", "5ms"], "there is no interface 'eth9'"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_asked(
    machine: Machine, arguments: list[str], said: str
) -> None:
    done = machine.run(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert machine.asked == []


def test_jitter_leaves_a_tenth_outside_p10_and_p90() -> None:
    shape = Shape(Delays((0.010, 0.020, 0.030)), rate=1.5e6)
    # p10 and p90 are 12 and 28 ms; ±10 ms spread evenly has them there too.
    assert netem(shape) == "delay 20000us 10000us rate 12000000bit limit 205"
    assert netem(Shape()) == "delay 0us rate 10000000000bit limit 175"
    assert loss("0.1:20") == " loss gemodel 0.1% 20%"


def test_profiles_are_printed_for_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    for name in PROFILES:
        assert main(["--profile", name]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["up", "down"]
