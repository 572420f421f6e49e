"""Status messages for the user."""

from dataclasses import dataclass
from typing import Any

from nninteractive_ws.client import events
from nninteractive_ws.errors import Cancelled

try:
    from slicer.i18n import tr as _
except ImportError:  # slicer-core has no translations

    def _(text):
        return text


#: Style of error messages, readable on light and on dark backgrounds.
RED = "color: #e53935"


@dataclass(frozen=True)
class Status:
    """State of the session for the status line.

    ``state``: idle, connecting, uploading, ready, predicting, lost, disconnected or error. ``message``: a sentence for
    the user. ``fraction``: progress from 0 to 1, or None if it is unknown or nothing runs. ``timings``: seconds that
    the last completed prompt took (nninteractive_ws.messages.Timings), or None.
    """

    state: str = "idle"
    message: str = ""
    fraction: float | None = None
    timings: Any = None


def _connection(event):
    if event.state == "open":
        return Status("ready", _("Connected."))
    if event.state == "closed":
        return Status("disconnected", _("Not connected: {reason}").format(reason=event.reason))
    if event.retry_in is None:
        return Status("lost", _("{reason} The next prompt connects again.").format(reason=event.reason))
    message = _("Connection lost, trying again in {seconds:.0f} s. No work is lost. {reason}")
    return Status("lost", message.format(seconds=event.retry_in, reason=event.reason))


def _imageProgress(event):
    if event.present == event.total:
        return Status("ready", _("The image is on the server."), 1.0)
    fraction = event.present / event.total
    return Status("uploading", _("Uploading the image: {percent:.0f} %").format(percent=100 * fraction), fraction)


def _progress(event):
    if event.state == "queued":
        return Status("predicting", _("Queued: number {position} in line").format(position=event.done + 1))
    if event.state == "waiting_for_image":
        message = _("Waiting for the image around the prompt: {done} of {total}").format(
            done=event.done, total=event.total
        )
        return Status("predicting", message, event.done / event.total if event.total else None)
    if event.state == "refining" and event.total:
        return Status(
            "predicting",
            _("Refining {done} of {total}").format(done=event.done, total=event.total),
            event.done / event.total,
        )
    return Status("predicting", _("Predicting") if event.state == "predicting" else _("Refining"))


def _done(event):
    timings = event.result.timings
    return Status("ready", _("Done in {seconds:.1f} s").format(seconds=timings.total), None, timings)


def _failed(event):
    if isinstance(event.error, Cancelled):
        return Status("ready", _("Canceled. The segment was reverted."))
    return Status("error", str(event.error))


def _notice(event):
    return Status("connecting" if event.code == "loading_model" else "ready", event.message)


_STATUS_OF = {
    events.Connection: _connection,
    events.ImageProgress: _imageProgress,
    events.Progress: _progress,
    events.Done: _done,
    events.Failed: _failed,
    events.Notice: _notice,
}


def statusOf(event):
    """The status that an event of the session leads to, or None."""
    convert = _STATUS_OF.get(type(event))
    return None if convert is None else convert(event)
