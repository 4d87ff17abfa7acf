"""types <-> protobuf, and all validation of what comes over the wire.

Every `*_from_proto` raises InvalidRequestError naming the field, its value and
what it may be; what it returns needs no further checks.
"""

from common.wire.draft import distributions_bytes, draft_from_proto, draft_to_proto
from common.wire.errors import error_details, error_from_details, error_to_proto, status_code
from common.wire.fields import WireLimits, printable
from common.wire.generate import (
    generate_from_proto,
    generate_to_proto,
    generated_from_proto,
    generated_to_proto,
)
from common.wire.handshake import check_handshake
from common.wire.info import info_from_proto, info_to_proto
from common.wire.opening import open_from_proto, open_to_proto
from common.wire.score import score_from_proto, score_to_proto
from common.wire.verdict import (
    ahead_from_proto,
    ahead_to_proto,
    verdict_from_proto,
    verdict_to_proto,
)

__all__ = [
    "WireLimits",
    "ahead_from_proto",
    "ahead_to_proto",
    "check_handshake",
    "distributions_bytes",
    "draft_from_proto",
    "draft_to_proto",
    "error_details",
    "error_from_details",
    "error_to_proto",
    "generate_from_proto",
    "generate_to_proto",
    "generated_from_proto",
    "generated_to_proto",
    "info_from_proto",
    "info_to_proto",
    "open_from_proto",
    "open_to_proto",
    "printable",
    "score_from_proto",
    "score_to_proto",
    "status_code",
    "verdict_from_proto",
    "verdict_to_proto",
]
