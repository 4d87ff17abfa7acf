"""Cloud and edge on two hosts: own addresses, a slow cable, TLS and a token, the cable cut."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.namespaces import Host, NotPermittedError, two_hosts
from tests.integration.processes import edge, edge_running, serving
from tests.models import Pair

SCRIPT = Path(__file__).parents[2] / "deploy" / "make_certs.sh"
LONG = ["--max-new-tokens", "240", "--ignore-eos"]
SENT_AGAIN = 2


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts() as joined:
            yield joined
    except NotPermittedError as refused:
        pytest.skip(f"two network namespaces cannot be joined here: {refused}")


def test_a_text_outlives_a_cut_cable(
    hosts: tuple[Host, Host], tiny_pair: Pair, tmp_path: Path
) -> None:
    cloud, client = hosts
    certs = tmp_path / "certs"
    subprocess.run(
        ["sh", str(SCRIPT), str(certs), cloud.address], check=True, stdout=subprocess.DEVNULL
    )
    security = [
        *("--set", f"security.tls_cert={certs}/server.pem"),
        *("--set", f"security.tls_key={certs}/server.key"),
        *("--set", f"security.token_file={certs}/tokens"),
    ]
    asking = ["--draft", str(tiny_pair.draft), "--prompt", "abc", *LONG]
    with serving(
        tiny_pair.target, "--listen", f"{cloud.address}:0", *security, within=cloud.within
    ) as server:
        assert server.address.startswith(cloud.address)
        trusting = ["--tls-ca", f"{certs}/ca.pem", "--token-file", f"{certs}/tokens"]
        command = ["generate", "--server", server.address, *trusting, *asking]
        with edge_running(*command, within=client.within) as process:
            assert process.stdout is not None
            begun = process.stdout.read(1)
            cloud.set_link("down")
            before = client.retransmitted()
            while client.retransmitted() < before + SENT_AGAIN:
                assert process.poll() is None, "the text had ended before the cable was cut"
            cloud.set_link("up")
            rest, said = process.communicate(timeout=90)
        assert process.returncode == 0, said
    with serving(tiny_pair.target) as near:
        assert begun + rest == edge("generate", "--server", near.address, *asking).stdout
