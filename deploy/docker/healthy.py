"""Exits 0 when the gRPC health service of a server says SERVING, else 1: a container's probe.

    python healthy.py HOST:PORT [--tls-ca FILE] [--token-file FILE]

A server with tokens answers no probe without one, so Kubernetes' own gRPC probe does not do.
"""

from __future__ import annotations

import argparse
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.config import SecuritySection
from edge_client.credentials import read_credentials

TIMEOUT_SECONDS = 3.0


def main() -> int:
    """Asks once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", metavar="HOST:PORT")
    parser.add_argument("--tls-ca", metavar="FILE")
    parser.add_argument("--token-file", metavar="FILE")
    options = parser.parse_args()
    security = SecuritySection(tls_ca=options.tls_ca, token_file=options.token_file)
    credentials = read_credentials(security, options.server.rpartition(":")[0])
    with (
        grpc.secure_channel(options.server, grpc.ssl_channel_credentials(credentials.authorities))
        if credentials.is_tls
        else grpc.insecure_channel(options.server)
    ) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(),
                timeout=TIMEOUT_SECONDS,
                metadata=credentials.metadata,
            )
        except grpc.RpcError as error:
            print(f"{options.server}: {error.code().name}", file=sys.stderr)
            return 1
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
