"""The gRPC method that looks at the host and at sandboxes."""

from __future__ import annotations

from typing import Any

from turnkeep.api.v1 import turnkeep_pb2 as pb
from turnkeep.coordinator.examine import Examiner
from turnkeep.model import Finding, Verdict
from turnkeep.server.conversions import text

_VERDICTS = {
    Verdict.OK: pb.VERDICT_OK,
    Verdict.DEGRADED: pb.VERDICT_DEGRADED,
    Verdict.MISSING: pb.VERDICT_MISSING,
}


class ExamineCalls:
    """The part of the service for `turnkeep doctor`."""

    _examiner: Examiner

    async def ExamineHost(self, request: pb.ExamineHostRequest, context: Any) -> pb.ExamineHostResponse:
        found = await self._examiner.examine(request.sandbox, self_test=request.self_test)
        return pb.ExamineHostResponse(findings=map(_message, found))


def _message(finding: Finding) -> pb.Finding:
    return pb.Finding(
        what=text(finding.what),
        verdict=_VERDICTS[finding.verdict],
        detail=text(finding.detail),
        fix=text(finding.fix),
    )
