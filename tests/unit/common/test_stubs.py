"""The committed stubs are those of the contract, and work with every runtime that is supported."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from outrider.v1 import verifier_pb2

MESSAGES = Path("outrider/v1/verifier_pb2.py").read_text(encoding="utf-8")
SERVICE = Path("outrider/v1/verifier_pb2_grpc.py").read_text(encoding="utf-8")


def lower_bound(package: str) -> str:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    (asked,) = [d for d in project["dependencies"] if re.match(rf"{package}\b", d)]
    return str(re.findall(r">=([\d.]+)", asked)[0])


def test_the_stubs_are_made_from_the_contract(tmp_path: Path) -> None:
    out = tmp_path / "contract.binpb"
    arguments = ["-Iproto", f"--descriptor_set_out={out}", "outrider/v1/verifier.proto"]
    assert protoc.main(["protoc", *arguments]) == 0
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    ours = descriptor_pb2.FileDescriptorProto()
    verifier_pb2.DESCRIPTOR.CopyToProto(ours)
    # Names for JSON are derived; one side spells them out, the other does not.
    for side in (file, ours):
        for message in side.message_type:
            for field in [*message.field, *(f for m in message.nested_type for f in m.field)]:
                field.ClearField("json_name")
    assert ours == file


def test_the_stubs_are_as_old_as_the_oldest_runtimes_supported() -> None:
    made_by = re.search(r"Protobuf Python Version: ([\d.]+)", MESSAGES)
    assert made_by is not None
    assert made_by[1] == lower_bound("protobuf")
    made_by = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", SERVICE)
    assert made_by is not None
    assert made_by[1].startswith(lower_bound("grpcio"))
