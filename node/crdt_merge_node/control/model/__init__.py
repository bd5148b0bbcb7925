"""What the daemon tells a person: plain, frozen values, the same in the API, in gRPC and in ``--json``.

Ids are 64 lower-case hex digits here, never bytes: this is an edge. Times are Unix seconds, weights are
integers over 2^32 as in the operations (PROTOCOL R1), so that nothing is rounded on the way. Field names
are the field names of ``crdt_merge_proto.v1``; ``codec`` relies on it and a test compares them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from crdt_merge_protocol.limits import WEIGHT_ONE

if TYPE_CHECKING:
    from .acts import Act, ActInfo, ActItem, ActKind, ActRequest, ErasureInfo, ErasureNode
    from .contributions import (
        ContributionAdded,
        ContributionInfo,
        ContributionPlan,
        ContributionsRemoved,
        ContributionState,
        ContributionWritten,
        Placement,
        WrittenFile,
    )
    from .events import EventsMissed, LogEvent, LogLevel
    from .groups import (
        GroupDetail,
        GroupInfo,
        OutputInfo,
        PolicyChanges,
        PolicyInfo,
    )
    from .peer_detail import PeerDetail, PeerExchange
    from .peers import (
        Alarm,
        Invite,
        PeerInfo,
        PeerState,
        PeerView,
        Reason,
        Severity,
        VersionInfo,
        WhyGroup,
        WhyReport,
    )
    from .status import Status
    from .upkeep import (
        BackupReport,
        CertificateInfo,
        LeaveItem,
        LeavePlan,
        LeaveReport,
    )
    from .work import (
        Progress,
        ResolvePlan,
        ResolveReport,
    )

__all__ = [
    "WEIGHT_ONE",
    "Act",
    "ActInfo",
    "ActItem",
    "ActKind",
    "ActRequest",
    "Alarm",
    "BackupReport",
    "CertificateInfo",
    "ContributionAdded",
    "ContributionInfo",
    "ContributionPlan",
    "ContributionState",
    "ContributionWritten",
    "ContributionsRemoved",
    "ErasureInfo",
    "ErasureNode",
    "EventsMissed",
    "GroupDetail",
    "GroupInfo",
    "Invite",
    "LeaveItem",
    "LeavePlan",
    "LeaveReport",
    "LogEvent",
    "LogLevel",
    "OutputInfo",
    "PeerDetail",
    "PeerExchange",
    "PeerInfo",
    "PeerState",
    "PeerView",
    "Placement",
    "PolicyChanges",
    "PolicyInfo",
    "Progress",
    "Reason",
    "ResolvePlan",
    "ResolveReport",
    "Severity",
    "Status",
    "VersionInfo",
    "WhyGroup",
    "WhyReport",
    "WrittenFile",
]

_HOMES: Final = {
    "acts": ("Act", "ActInfo", "ActItem", "ActKind", "ActRequest", "ErasureInfo", "ErasureNode"),
    "contributions": (
        "ContributionAdded",
        "ContributionInfo",
        "ContributionPlan",
        "ContributionsRemoved",
        "ContributionState",
        "ContributionWritten",
        "Placement",
        "WrittenFile",
    ),
    "events": ("EventsMissed", "LogEvent", "LogLevel"),
    "groups": ("GroupDetail", "GroupInfo", "OutputInfo", "PolicyChanges", "PolicyInfo"),
    "peer_detail": ("PeerDetail", "PeerExchange"),
    "peers": (
        "Alarm",
        "Invite",
        "PeerInfo",
        "PeerState",
        "PeerView",
        "Reason",
        "Severity",
        "VersionInfo",
        "WhyGroup",
        "WhyReport",
    ),
    "status": ("Status",),
    "upkeep": ("BackupReport", "CertificateInfo", "LeaveItem", "LeavePlan", "LeaveReport"),
    "work": ("Progress", "ResolvePlan", "ResolveReport"),
}


def __getattr__(name: str) -> Any:
    """Load the module that defines a public name."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
