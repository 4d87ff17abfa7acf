"""A server that asks for certificates and tokens: who gets in, who does not, and what is told."""

from __future__ import annotations

import json
import queue
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from common import wire
from common.config import NetworkSection, SecuritySection
from common.errors import OutriderError, RefusedError, UnavailableError
from common.types import Draft, GenerateMode, OpenSession, Peer, SamplingParams, StopParams
from edge_client.cli import main
from edge_client.link import Answer
from edge_client.transport import CloudConnection
from outrider.v1 import verifier_pb2 as pb
from outrider.v1.verifier_pb2_grpc import VerifierStub
from tests.integration.processes import ENVIRONMENT, Server, edge, serving
from tests.models import Pair, tiny_tokenizer

ALICE, BOB, MALLORY = "alice's-token-0001", "bob's-own-token-01", "mallory's-guess-01"
VERIFIER = pb.DESCRIPTOR.services_by_name["Verifier"]
METHODS = [
    *(f"/{VERIFIER.full_name}/{method.name}" for method in VERIFIER.methods),
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    f"/{reflection_pb2.DESCRIPTOR.services_by_name['ServerReflection'].full_name}/"
    "ServerReflectionInfo",
    "/outrider.v1.Verifier/NoSuchMethod",
]
NOT_OURS = b"\xff\xff\xff"
"""Bytes that are no message: parsed, they would be refused for another reason."""


def identity(certificates: Path, name: str) -> dict[str, str]:
    return {
        "tls_cert": str(certificates / f"{name}.pem"),
        "tls_key": str(certificates / f"{name}.key"),
    }


def flags(security: dict[str, str]) -> list[str]:
    return [
        word for key, value in security.items() for word in ("--set", f"security.{key}={value}")
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files: the server's, and each client's own."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "server").write_text(f"alice {ALICE}\n{BOB}\n")
    for name, secret in (("alice", ALICE), ("bob", BOB), ("mallory", MALLORY)):
        (folder / name).write_text(f"{secret}\n")
    return folder


@pytest.fixture(scope="module")
def required(certificates: Path, folder: Path) -> dict[str, str]:
    return {
        **identity(certificates, "server"),
        "tls_client_ca": str(certificates / "ca.pem"),
        "token_file": str(folder / "server"),
    }


@pytest.fixture(scope="module")
def guarded(tiny_pair: Pair, required: dict[str, str]) -> Iterator[Server]:
    """Asks for a certificate of the authority's, and for a token."""
    with serving(tiny_pair.target, *flags(required)) as running:
        yield running


@pytest.fixture(scope="module")
def trusted(certificates: Path, folder: Path) -> dict[str, str]:
    """What gets a client in."""
    return {
        **identity(certificates, "client"),
        "tls_ca": str(certificates / "ca.pem"),
        "token_file": str(folder / "alice"),
    }


@pytest.fixture(scope="module")
def channel(guarded: Server, certificates: Path) -> Iterator[grpc.Channel]:
    """The way to the guarded server with a certificate; each call brings its own token."""
    with secure_channel(guarded.address, certificates) as opened:
        yield opened


def secure_channel(address: str, certificates: Path) -> grpc.Channel:
    files = (certificates / name for name in ("ca.pem", "client.key", "client.pem"))
    credentials = grpc.ssl_channel_credentials(*(file.read_bytes() for file in files))
    return grpc.secure_channel(address, credentials)


def bearer(secret: str, scheme: str = "Bearer") -> tuple[tuple[str, str], ...]:
    return (("authorization", f"{scheme} {secret}"),)


def connect(address: str, security: dict[str, str]) -> CloudConnection:
    section = SecuritySection.model_validate(security)
    return CloudConnection(address, NetworkSection(), 1 << 20, security=section)


def test_who_has_both_gets_in_from_the_command_line(
    guarded: Server, trusted: dict[str, str], tiny_pair: Pair
) -> None:
    shown = identity(Path(trusted["tls_ca"]).parent, "client")
    arguments = ["--server", guarded.address, "--draft", str(tiny_pair.draft), "--prompt", "The"]
    arguments += ["--tls-ca", trusted["tls_ca"], "--token-file", trusted["token_file"]]
    done = edge("generate", *arguments, *flags(shown), "--max-new-tokens", "8")
    assert done.stdout.strip()
    assert done.stderr == ""


def test_every_kind_of_call_carries_the_token(guarded: Server, trusted: dict[str, str]) -> None:
    with closing(connect(guarded.address, trusted)) as cloud:
        info = cloud.info()
        peer = Peer(info.protocol_version, info.tokenizer_fingerprint, info.vocab_size, info.dtype)
        opening = OpenSession(peer, (5, 6, 7), SamplingParams(), StopParams(max_new_tokens=4))
        assert cloud.echo(b"payload")[1] >= 0
        assert len(cloud.score([5, 6], [7])) == 1
        assert len(cloud.opinion([5, 6], [7]).logprobs) == 1
        with cloud.open(opening) as stream:
            stream.send(Draft(1, 3, 0))
            answer = stream.receive()
            assert isinstance(answer, Answer)
            first = answer.verdict.next_token_id
        pieces = list(cloud.generate(GenerateMode.OPTIMIZED, opening))
    assert pieces[0].tokens.token_ids == (first,)


Call = Callable[[Any, str, Any], Any]


def unary(channel: Any, method: str, metadata: Any) -> Any:
    return channel.unary_unary(method)(NOT_OURS, metadata=metadata, timeout=60)


def silent(channel: Any, method: str, metadata: Any) -> Any:
    """Sends no message at all, so that an answer is one to the call itself."""
    requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    try:
        stream = channel.stream_stream(method)
        return next(stream(iter(requests.get, None), metadata=metadata, timeout=60))
    finally:
        requests.put(None)


@pytest.mark.parametrize("call", [unary, silent])
@pytest.mark.parametrize("method", METHODS)
def test_no_method_answers_without_a_known_token(
    guarded: Server, channel: grpc.Channel, method: str, call: Call
) -> None:
    cases: list[tuple[str, Any]] = [
        ("asks for a token and none came", None),
        ("does not know the token", bearer(MALLORY)),
        ("does not know the token", bearer(ALICE, "Basic")),
        ("does not know the token", (("authorization", ALICE),)),
        ("does not know the token", bearer("")),
        ("does not know the token", bearer(ALICE) + bearer(ALICE)),
    ]
    before = refusals(guarded)
    for message, metadata in cases:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, method, metadata)
        error: Any = caught.value
        assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        assert message in error.details()
        packed = dict(error.trailing_metadata())["grpc-status-details-bin"]
        assert isinstance(wire.error_from_details(packed, ""), RefusedError)
    assert refusals(guarded) - before == len(cases)


def refusals(server: Server) -> float:
    """Reads the metrics, which are on a listener of their own and ask for nothing."""
    with urlopen(f"http://{server.metrics}/metrics") as page:
        text = page.read().decode()
    found = re.search(r'^outrider_request_errors_total\{reason="REFUSED"\} (\S+)$', text, re.M)
    return float(found[1]) if found else 0.0


def test_a_known_token_opens_every_method(channel: grpc.Channel) -> None:
    stub = VerifierStub(channel)
    echo = pb.EchoRequest(payload=b"x")
    assert stub.Echo(echo, metadata=bearer(BOB, "bearer"), timeout=60).payload == b"x"
    health = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = health(health_pb2.HealthCheckRequest(), metadata=bearer(ALICE), timeout=60)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "/outrider.v1.Verifier/NoSuchMethod", bearer(ALICE))
    error: Any = caught.value
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        (
            {"tls_ca": None, "tls_cert": None, "tls_key": None},
            UnavailableError,
            "set security.tls_ca",
        ),
        ({"tls_cert": None, "tls_key": None}, UnavailableError, "set security.tls_cert and"),
        ({"tls_ca": "system"}, RefusedError, "is not one that security.tls_ca"),
        ({"tls_ca": "STRANGE/ca.pem"}, RefusedError, "is not one that security.tls_ca"),
        (
            {"tls_cert": "STRANGE/client.pem", "tls_key": "STRANGE/client.key"},
            UnavailableError,
            "set security.tls_cert and security.tls_key to one it accepts",
        ),
        ({"token_file": None}, RefusedError, "security.token_file (--token-file)"),
        ({"token_file": "TOKENS/mallory"}, RefusedError, "security.token_file (--token-file)"),
    ],
)
def test_who_lacks_one_of_them_is_told_what_to_set(
    guarded: Server,
    trusted: dict[str, str],
    strange: Path,
    folder: Path,
    changed: dict[str, str | None],
    kind: type[OutriderError],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"STRANGE": str(strange), "TOKENS": str(folder)}
    security = dict(trusted)
    for key, value in changed.items():
        security.pop(key)
        if value is not None:
            place, slash, name = value.partition("/")
            security[key] = f"{places[place]}/{name}" if slash else value
    with closing(connect(guarded.address, security)) as cloud, pytest.raises(kind, match="server"):
        cloud.info()
    assert main(["ping", "--server", guarded.address, *flags(security)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"outrider-edge: server {guarded.address}: ")
    assert message in line
    assert not any(secret in line for secret in (ALICE, MALLORY))


def test_what_tls_refuses_is_one_line_on_the_terminal(guarded: Server, strange: Path) -> None:
    """gRPC would write notices of its own to stderr, past Python."""
    done = edge("ping", "--server", guarded.address, "--tls-ca", str(strange / "ca.pem"), check=3)
    (line,) = done.stderr.splitlines()
    assert "is not one that security.tls_ca (--tls-ca) vouches for" in line


@pytest.fixture(scope="module")
def strange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of an authority nobody here trusts."""
    directory = tmp_path_factory.mktemp("strange")
    script = Path(__file__).parents[2] / "deploy" / "make_certs.sh"
    subprocess.run(["sh", str(script), str(directory)], check=True, stdout=subprocess.DEVNULL)
    return directory


def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=other -keyout other.key"
    command += " -addext subjectAltName=DNS:other.host -out other.pem"
    subprocess.run(command.split(), cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    pair = [(tmp_path / name).read_bytes() for name in ("other.key", "other.pem")]
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(pair[0], pair[1])]))
    other.start()
    ask = ["ping", "--server", f"127.0.0.1:{port}", "--tls-ca", str(tmp_path / "other.pem")]
    assert main(ask) == 3
    other.stop(None).wait()
    (line,) = capsys.readouterr().err.splitlines()
    assert "its certificate is for another name" in line


def test_tls_to_a_server_without_it_is_told(
    server: Server, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ["ping", "--server", server.address, "--tls-ca", str(certificates / "ca.pem")]
    assert main(ask) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "it speaks no TLS, and security.tls_ca (--tls-ca) asks for it" in line


def test_a_unary_session_is_there_for_who_opened_it_alone(channel: grpc.Channel) -> None:
    stub = VerifierStub(channel)

    def ask(secret: str, **entry: Any) -> pb.VerifyBatchResult:
        request = pb.VerifyBatchRequest(entries=[pb.VerifyBatchEntry(**entry)])
        return stub.VerifyBatch(request, metadata=bearer(secret), timeout=60).results[0]

    stop = pb.StopParams(max_new_tokens=8, ignore_eos=True)
    first = pb.VerifyRequest(step_id=1, position=3)
    opened = ask(ALICE, open=pb.OpenSession(prompt_token_ids=[5, 6, 7], stop=stop), verify=first)
    key = opened.session_token
    second = pb.VerifyRequest(step_id=2, position=4)
    for attempt in ({"verify": second}, {"close": True}):
        found = ask(BOB, session_token=key, **attempt)
        assert (found.error.reason, found.session_token) == ("NOT_FOUND", b"")
        assert not found.HasField("verdict")
    assert ask(ALICE, session_token=key, verify=second).verdict.outcome == pb.OUTCOME_VERIFIED
    assert ask(ALICE, session_token=key, close=True).error.reason == ""


def test_a_stream_has_no_word_for_another_session() -> None:
    """What a session's stream may say, whole: no field of it names a session."""
    said: set[str] = set()
    todo = [pb.SessionRequest.DESCRIPTOR]
    while todo:
        message = todo.pop()
        for field in message.fields:
            said.add(field.full_name.removeprefix("outrider.v1."))
            if field.message_type is not None:
                todo.append(field.message_type)
    naming = {
        name for name in said if re.search(r"session|handle|owner|client", name.split(".")[1])
    }
    assert naming == set()
    assert "VerifyRequest.step_id" in said


def test_streams_with_the_same_numbers_do_not_meet(channel: grpc.Channel) -> None:
    """Two streams say the same step and position; each is answered from its own prompt."""
    stub = VerifierStub(channel)
    stop = pb.StopParams(max_new_tokens=8, ignore_eos=True)
    verify = pb.SessionRequest(verify=pb.VerifyRequest(step_id=1, position=3))

    def choices(prompts: list[list[int]]) -> list[int]:
        queues: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in prompts]
        calls: list[Any] = [
            stub.Session(iter(requests.get, None), metadata=bearer(ALICE), timeout=60)
            for requests in queues
        ]
        for requests, prompt in zip(queues, prompts, strict=True):
            opened = pb.OpenSession(prompt_token_ids=prompt, stop=stop)
            requests.put(pb.SessionRequest(open=opened))
        for call in calls:
            next(call)
        for requests in queues:
            requests.put(verify)
        verdicts = [next(call).verdict.next_token_id for call in calls]
        for requests in queues:
            requests.put(None)
        return verdicts

    prompts = [[5, 6, 7], [80, 91, 102]]
    alone = [choices([prompt])[0] for prompt in prompts]
    assert choices(prompts) == alone
    assert alone[0] != alone[1]


def wait_for(server: Server, text: str, times: int = 1) -> None:
    """Waits until the server has logged a text so often; fails when it ends before."""
    while sum(text in line for line in server.log) < times:
        with suppress(subprocess.TimeoutExpired):
            server.process.wait(0.02)
            raise AssertionError("".join(server.log))


def test_a_hangup_reads_the_tokens_again_and_a_bad_file_changes_nothing(
    tiny_pair: Pair, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {ALICE}\n")
    with serving(tiny_pair.target, "--set", f"security.token_file={tokens}") as running:
        with grpc.insecure_channel(running.address) as opened:
            stub = VerifierStub(opened)

            def is_known(secret: str) -> bool:
                try:
                    stub.Echo(pb.EchoRequest(), metadata=bearer(secret), timeout=60)
                except grpc.RpcError as error:
                    refused: Any = error
                    assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
                    return False
                return True

            assert (is_known(ALICE), is_known(BOB)) == (True, False)
            tokens.write_text(f"bob {BOB}\n")
            running.process.send_signal(signal.SIGHUP)
            wait_for(running, "read again; tokens in it: 1", times=2)  # once at its start
            assert (is_known(ALICE), is_known(BOB)) == (False, True)
            tokens.write_text(f"alice {ALICE} and more\n")
            running.process.send_signal(signal.SIGHUP)
            wait_for(running, "ERROR the tokens stay as they were")
            assert (is_known(ALICE), is_known(BOB)) == (False, True)
        assert running.stop() == 0
    assert not any(secret in line for line in running.log for secret in (ALICE, BOB))


def test_a_hangup_without_a_token_file_ends_nothing(server: Server) -> None:
    server.process.send_signal(signal.SIGHUP)
    wait_for(server, "SIGHUP: there is no security.token_file")
    with grpc.insecure_channel(server.address) as opened:
        assert VerifierStub(opened).Echo(pb.EchoRequest(payload=b"x"), timeout=60).payload == b"x"


def test_a_server_beyond_loopback_without_either_does_not_start(tiny_pair: Pair) -> None:
    command = [sys.executable, "-m", "cloud_server", "serve", "--model", str(tiny_pair.target)]
    done = subprocess.run(
        [*command, "--listen", "0.0.0.0:0", "--metrics-listen", "127.0.0.1:0"],
        capture_output=True, text=True, env=ENVIRONMENT, timeout=100, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("outrider-cloud: cloud.listen names 0.0.0.0, which others can reach")
    assert line.endswith("or say --insecure")


PROMPT = "Zanzibar quokka umbrella"


def test_neither_tokens_nor_prompts_are_logged(
    tiny_pair: Pair,
    required: dict[str, str],
    trusted: dict[str, str],
    certificates: Path,
    tmp_path: Path,
) -> None:
    """A prompt through every arm, then errors of many kinds, and not a word of it in the log."""
    ids = tiny_tokenizer().encode(PROMPT)
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": PROMPT}))
    with serving(tiny_pair.target, *flags(required)) as running:
        made = edge(
            "bench", "--server", running.address, "--draft", str(tiny_pair.draft),
            "--prompts", str(tmp_path / "prompts.jsonl"), "--out", str(tmp_path / "out"),
            "--arms", "cloud,cloud_optimized,speculative", "--max-new-tokens", "6", "--debug",
            *flags(trusted),
        )  # fmt: skip
        assert PROMPT in (tmp_path / "out" / "report.html").read_text()
        with secure_channel(running.address, certificates) as opened:
            told = errors(opened, ids)
        assert running.stop() == 0
        assert running.process.stdout is not None
        rest = running.process.stdout.read()
    assert {"INVALID_ARGUMENT", "UNAUTHENTICATED"} <= {code for code, _ in told}
    assert any(str(WRONG_ID) in message for _, message in told)  # who sent it is told
    assert rest == ""
    log = "".join(running.log)
    assert "draining" in log
    for word in (*PROMPT.split(), str(WRONG_ID), ", ".join(map(str, ids[:3])), "prompt_token_ids"):
        assert word not in log
    for secret in (ALICE, BOB, MALLORY):
        assert secret not in log + made.stdout + made.stderr


WRONG_ID = 987654


def errors(channel: grpc.Channel, ids: list[int]) -> list[tuple[str, str]]:
    """Provokes what a client can; returns each status and message."""
    stub = VerifierStub(channel)
    known = bearer(ALICE)
    stop = pb.StopParams(max_new_tokens=8)
    opening = pb.OpenSession(prompt_token_ids=[*ids, WRONG_ID], stop=stop)
    long = pb.OpenSession(prompt_token_ids=ids * 99, stop=stop)
    batch = pb.VerifyBatchRequest(
        entries=[pb.VerifyBatchEntry(open=each) for each in (opening, long)]
    )
    results = stub.VerifyBatch(batch, metadata=known, timeout=60).results
    told = [(result.error.reason, result.error.message) for result in results]
    calls: list[Callable[[], Any]] = []
    for each in (opening, long):
        request = pb.GenerateRequest(mode="GENERATE_MODE_OPTIMIZED", open=each)
        first = pb.SessionRequest(open=each)
        calls += [
            partial(drain, stub.Generate, request, known),
            partial(drain, stub.Session, iter([first]), known),
            partial(drain, stub.Session, iter([first]), bearer(MALLORY)),
        ]
    score = pb.ScoreRequest(context_token_ids=[*ids, WRONG_ID], token_ids=[1])
    calls.append(partial(stub.Score, score, metadata=known, timeout=60))
    calls.append(partial(unary, channel, f"/{VERIFIER.full_name}/Score", known))
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        error: Any = caught.value
        told.append((error.code().name, error.details()))
    return told


def drain(method: Any, request: Any, metadata: Any) -> None:
    for _ in method(request, metadata=metadata, timeout=60):
        pass
