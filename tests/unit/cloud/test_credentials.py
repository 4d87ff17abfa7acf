"""The tokens a server knows: whose one is, how it is compared, and the file read again."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path
from typing import Any

import pytest

from cloud_server.credentials import Credentials
from common.errors import ConfigError

ALICE, ALICE_NEXT, NAMELESS = "alice's-token-0001", "alice's-token-0002", "nobody's-token-01"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(f"alice {ALICE}\nalice {ALICE_NEXT}\n{NAMELESS}\n")
    return path


def test_a_token_says_who_its_client_is(file: Path) -> None:
    known = Credentials(str(file))
    assert len(known) == 3
    assert known.client(ALICE) == known.client(ALICE_NEXT) == "alice"
    assert known.client(NAMELESS) == hashlib.sha256(NAMELESS.encode()).hexdigest()[:8]
    for unknown in ("", ALICE[:-1], ALICE.upper(), f"{ALICE} ", "alice", "\udcff"):
        assert known.client(unknown) is None


def test_every_entry_is_compared_in_constant_time_whichever_it_is(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    real = hmac.compare_digest

    def counting(known: Any, asked: Any) -> bool:
        compared.append(len(asked))
        return real(known, asked)

    known = Credentials(str(file))
    monkeypatch.setattr(hmac, "compare_digest", counting)
    for secret in (ALICE, NAMELESS, "unknown"):
        known.client(secret)
    assert compared == [32] * 9


def test_no_token_is_kept(file: Path) -> None:
    assert ALICE not in repr(vars(Credentials(str(file))))


def test_two_clients_with_one_token_are_refused(file: Path) -> None:
    file.write_text(f"alice {ALICE}\nbob {ALICE}\n")
    with pytest.raises(ConfigError, match="alice and bob have the same token") as caught:
        Credentials(str(file))
    assert ALICE not in str(caught.value)


def test_the_file_is_read_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    known = Credentials(str(file))
    file.write_text(f"bob {ALICE_NEXT}\n")
    assert known.client(ALICE) == "alice"
    known.reload()
    assert known.client(ALICE) is None
    assert known.client(ALICE_NEXT) == "bob"
    assert caplog.messages == [f"{file} read again; tokens in it: 1"]


@pytest.mark.parametrize("text", ["short", "", f"a {ALICE}\nb {ALICE}\n", None])
def test_a_file_that_went_bad_changes_nothing_and_is_logged(
    file: Path, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    known = Credentials(str(file))
    file.unlink()
    if text is not None:
        file.write_text(text)
    known.reload()
    assert known.client(ALICE) == "alice"
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "the tokens stay as they were: security.token_file" in record.message
    assert ALICE not in record.message
