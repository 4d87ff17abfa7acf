"""Token files and PEM files: what is read, and what a user is told of a bad one."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.config import SecuritySection
from common.credentials import Token, read_authorities, read_identity, read_tokens
from common.errors import ConfigError
from common.loopback import is_loopback

SECRET = "0123456789abcdef"
OTHER = "fedcba9876543210"


def token_file(folder: Path, text: str) -> str:
    file = folder / "tokens"
    file.write_text(text, encoding="utf-8")
    return str(file)


def test_a_token_has_a_line_with_or_without_a_name(tmp_path: Path) -> None:
    path = token_file(tmp_path, f"# who may come: café\n\n  alice\t{SECRET}\r\n{OTHER}\n  # end")
    assert read_tokens(path) == (Token("alice", SECRET), Token(None, OTHER))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no token"),
        ("# nothing\n\n", "holds no token"),
        (f"{SECRET}\nalice 0123456789abcde", "line 2: a token of 15 characters can be guessed"),
        (f"\nalice {SECRET} # of hers", "line 2: 5 words; write NAME TOKEN or TOKEN"),
        (f"{SECRET} #0123456789abcdef", "line 1: a token is of printable ASCII"),
        ("0123456789abcdéf", "line 1: a token is of printable ASCII"),
        ("0123456789abcd\x7f0", "line 1: a token is of printable ASCII"),
        (f"ali:ce {SECRET}", "line 1: the name is not"),
        (f"{'a' * 65} {SECRET}", "line 1: the name is not"),
    ],
)
def test_a_bad_token_file_is_told_by_its_line_and_never_by_a_token(
    tmp_path: Path, text: str, message: str
) -> None:
    path = token_file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_tokens(path)
    assert f"security.token_file = {path!r}" in str(caught.value)
    assert message in str(caught.value)
    assert "0123456789" not in str(caught.value)


def test_a_token_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"security.token_file = '.*none'.*No such file"):
        read_tokens(str(tmp_path / "none"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is no text"):
        read_tokens(str(tmp_path / "binary"))


def test_nothing_shows_a_token_or_a_key(certificates: Path) -> None:
    identity = read_identity(section(certificates))
    assert identity is not None
    assert b"PRIVATE KEY" in identity.key
    assert "PRIVATE KEY" not in repr(identity)
    assert SECRET not in repr(Token("alice", SECRET))


def section(folder: Path, **changed: str) -> SecuritySection:
    names = {"tls_cert": "server.pem", "tls_key": "server.key", **changed}
    files = {key: str(folder / name) for key, name in names.items()}
    return SecuritySection.model_validate(files)


def test_no_certificate_is_no_identity() -> None:
    assert read_identity(SecuritySection()) is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tls_cert": "none"}, "security.tls_cert = '{}/none' cannot be read: No such file"),
        ({"tls_key": "none"}, "security.tls_key = '{}/none' cannot be read: No such file"),
        ({"tls_cert": "server.key"}, "'{}/server.key' holds no `-----BEGIN CERTIFICATE-----`"),
        ({"tls_key": "server.pem"}, "'{}/server.pem' holds no `-----BEGIN PRIVATE KEY-----`"),
        ({"tls_key": "client.key"}, "KEY_VALUES_MISMATCH"),
        ({"tls_cert": "junk.pem"}, "'{}/junk.pem' and security.tls_key"),
        ({"tls_key": "locked.key"}, "the key without a passphrase"),
    ],
)
def test_a_bad_identity_names_key_file_and_way_out(
    certificates: Path, tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    for file in certificates.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "junk.pem").write_text("-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----")
    lock = ["openssl", "pkey", "-in", str(tmp_path / "server.key"), "-aes128"]
    lock += ["-passout", "pass:word", "-out", str(tmp_path / "locked.key")]
    subprocess.run(lock, check=True)
    with pytest.raises(ConfigError) as caught:
        read_identity(section(tmp_path, **changed))
    assert message.format(tmp_path) in str(caught.value)


def test_authorities_are_certificates(certificates: Path, tmp_path: Path) -> None:
    path = str(certificates / "ca.pem")
    assert read_authorities(path, "security.tls_ca") == Path(path).read_bytes()
    with pytest.raises(ConfigError, match=r"tls_ca = '.*ca.key' holds no `-----BEGIN CERT"):
        read_authorities(str(certificates / "ca.key"), "security.tls_ca")
    junk = tmp_path / "junk"
    junk.write_text("-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----")
    with pytest.raises(ConfigError, match=r"security.tls_client_ca = '.*junk' holds no readable"):
        read_authorities(str(junk), "security.tls_client_ca")


@pytest.mark.parametrize(
    ("host", "stays_here"),
    [
        ("127.0.0.1", True),
        ("127.200.3.4", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("[::]", False),
        ("10.0.0.7", False),
        ("::ffff:10.0.0.7", False),
        ("*", False),
        ("", False),
    ],
)
def test_only_this_machine_is_loopback(host: str, stays_here: bool) -> None:
    assert is_loopback(host) is stays_here


@pytest.mark.parametrize(
    ("numbers", "stays_here"),
    [(["127.0.0.1", "::1"], True), (["127.0.0.1", "10.0.0.7"], False), (["10.0.0.7"], False)],
)
def test_a_name_is_loopback_when_all_it_stands_for_is(
    monkeypatch: pytest.MonkeyPatch, numbers: list[str], stays_here: bool
) -> None:
    def resolve(host: str, port: None) -> list[Any]:
        assert host == "some.host"
        return [(0, 0, 0, "", (number, 0)) for number in numbers]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert is_loopback("some.host") is stays_here


def test_a_name_that_stands_for_nothing_is_not_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(host: str, port: None) -> list[Any]:
        raise socket.gaierror("unknown")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    assert not is_loopback("nonesuch")
