"""Results of doctor's steps."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class StepOutput:
    """Output of a step that did not fail. ``message``: for people; ``data``: the same facts for programs."""

    message: str
    data: dict[str, Any] = field(default_factory=dict)
    warning: bool = False


class StepFailed(Exception):
    """A step failed. ``str()`` is a sentence that says why and what to do."""

    def __init__(self, code: str, message: str, **data: Any) -> None:
        super().__init__(message)
        self.code, self.data = code, data


@dataclass(frozen=True)
class StepResult:
    """Result of one step. ``found``: the message for people; ``code``: of a failure."""

    step: str
    status: Literal["ok", "warning", "failed"]
    found: str
    seconds: float
    code: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
