"""What a step of a checkup found."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Look:
    """What a step found, where it did not fail. ``found``: in words; ``data``: the same as numbers and names."""

    found: str
    data: dict[str, Any] = field(default_factory=dict)
    warning: bool = False


class Trouble(Exception):
    """Why a step failed: ``str()`` is a sentence with the cure."""

    def __init__(self, code: str, found: str, **data: Any) -> None:
        super().__init__(found)
        self.code, self.data = code, data


@dataclass(frozen=True)
class Finding:
    """One step and how long it took. ``code``: of what failed."""

    step: str
    status: Literal["ok", "warning", "failed"]
    found: str
    seconds: float
    code: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
