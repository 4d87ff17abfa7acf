"""A stranger with a generic client and the comments of the contract, and nothing else.

Runs every grpcurl example of verifier.proto the way grpcurl would: descriptors come from the
server's reflection, messages from the JSON in the comment.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.integration.processes import Server

PROTO = Path("proto/outrider/v1/verifier.proto").read_text(encoding="utf-8")


def examples() -> list[list[str]]:
    """Returns the words of each grpcurl command in the head of the contract."""
    head = PROTO.split("syntax =")[0]
    comment = "\n".join(line.removeprefix("//") for line in head.splitlines())
    commands = comment.split("grpcurl -plaintext")[1:]
    return [shlex.split(command) for command in commands]


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def documents(text: str) -> list[dict[str, Any]]:
    """Splits JSON objects written one after the other, as grpcurl does."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        value, end = decoder.raw_decode(text)
        found.append(value)
        text = text[end:]
    return found


def call(channel: grpc.Channel, method_path: str, data: str) -> list[dict[str, Any]]:
    """Does what grpcurl does, and returns the answers as JSON."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service_name, method_name = method_path.split("/")
    method = pool.FindServiceByName(service_name).methods_by_name[method_name]
    request_type = message_factory.GetMessageClass(method.input_type)
    answer_type = message_factory.GetMessageClass(method.output_type)
    requests = [json_format.ParseDict(d, request_type()) for d in documents(data)]
    rpc: Any = channel.stream_stream(
        f"/{method_path}",
        request_serializer=request_type.SerializeToString,
        response_deserializer=answer_type.FromString,
    )
    return [
        json_format.MessageToDict(answer, preserving_proto_field_name=True)
        for answer in rpc(iter(requests or [request_type()]), timeout=60)
    ]


def test_every_method_is_shown() -> None:
    shown = {words[-1].split("/")[-1] for words in examples()}
    assert shown == {"list", *re.findall(r"^  rpc (\w+)", PROTO, re.M)}


def test_list(channel: grpc.Channel) -> None:
    services = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert "outrider.v1.Verifier" in services
    assert "grpc.health.v1.Health" in services


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (words, expected)
        for words in examples()
        for method, expected in {
            "GetServerInfo": {"dtype": "float32"},
            "Echo": {"payload": "aGVsbG8="},
            "Generate": {"finish_reason": "FINISH_REASON_MAX_NEW_TOKENS"},
            "Session": {"step_id": "1", "outcome": "OUTCOME_VERIFIED"},
            "VerifyBatch": {"step_id": "1", "outcome": "OUTCOME_VERIFIED"},
            "Score": {},
        }.items()
        if words[-1].endswith(f"/{method}")
    ],
)
def test_the_examples_of_the_contract_work(
    channel: grpc.Channel, words: list[str], expected: dict[str, str]
) -> None:
    data = words[words.index("-d") + 1] if "-d" in words else ""
    last = call(channel, words[-1], data)[-1]
    last = last.get("verdict", last.get("results", [last])[0])
    last = last.get("verdict", last)
    assert {name: last.get(name) for name in expected} == expected


def test_health(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "outrider.v1.Verifier"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_every_method_message_and_value_is_documented() -> None:
    undocumented = [
        line.strip()
        for above, line in itertools.pairwise(PROTO.splitlines())
        if re.match(r"\s*(rpc|message|service|enum) \w+|\s+[A-Z_]+ = [1-9]", line)
        and not above.strip().startswith("//")
    ]
    assert undocumented == []
