"""Cloud and edge on two hosts: own addresses, a slow cable, TLS and a token, the cable cut."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.namespaces import Host, NotPermittedError, two_hosts
from tests.integration.processes import edge_running, serving
from tests.integration.reference import stock_tokens
from tests.models import Pair, tiny_tokenizer

SCRIPT = Path(__file__).parents[2] / "deploy" / "make_certs.sh"
TOKENS = 240
LONG = ["--max-new-tokens", str(TOKENS), "--ignore-eos"]
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
    with serving(
        tiny_pair.target, "--listen", f"{cloud.address}:0", *security, within=cloud.within
    ) as far:
        assert far.address.startswith(cloud.address)
        trusting = ["--tls-ca", f"{certs}/ca.pem", "--token-file", f"{certs}/tokens"]
        asking = ["--draft", str(tiny_pair.draft), "--prompt", "abc", *LONG]
        command = ["generate", "--server", far.address, *trusting, *asking]
        with edge_running(*command, within=client.within) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            written = process.stdout.read(1)
            cloud.set_link("down")
            before = client.retransmitted()
            while client.retransmitted() < before + SENT_AGAIN:
                assert process.poll() is None, "the text had ended before the cable was cut"
            cloud.set_link("up")
            written += process.stdout.read()
            said = process.stderr.read()
            assert process.wait() == 0, said
    whole = tiny_tokenizer().decode(stock_tokens("abc", TOKENS), skip_special_tokens=True)
    assert isinstance(whole, str)
    assert written == whole.rstrip("\ufffd") + "\n"  # no half character at the end
