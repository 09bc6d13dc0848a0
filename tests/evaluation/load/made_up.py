"""Records and results made up for tests of figures."""

from typing import Any

from headstart.evaluation.load.records import RequestRecord
from headstart.evaluation.load.result import LoadResult
from headstart.evaluation.load.settings import LoadSettings
from headstart.evaluation.load.target import Target


def record(index: int = 0, **changes: Any) -> RequestRecord:
    """A request that was answered with five tokens."""
    values: dict[str, Any] = {
        "kind": "load",
        "at": 0.0,
        "sent": 0.001,
        "end": 1.0,
        "status": "ok",
        "asked_input": 8,
        "asked_output": 5,
        "first": 0.5,
        "gaps": [0.1, 0.1, 0.1, 0.1],
        "http_status": 200,
    }
    return RequestRecord(index=index, **{**values, **changes})


def result(records: list[RequestRecord], **changes: Any) -> LoadResult:
    """A load of these records."""
    values = {"settings": LoadSettings(rate=1.0), "url": "http://x", "target": Target("m"), "started": "now"}
    return LoadResult(**{**values, "records": records, **changes})
