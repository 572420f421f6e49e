"""What happens, in words for the status line."""

from dataclasses import dataclass
from typing import Any

from nninteractive_ws.client import events
from nninteractive_ws.errors import Cancelled

try:
    from slicer.i18n import tr as _
except ImportError:  # slicer-core has no translations

    def _(text):
        return text


@dataclass(frozen=True)
class Status:
    """``state``: idle, connecting, uploading, ready, predicting, lost or error. ``words``: a sentence.
    ``fraction``: 0 to 1 for a progress bar, None: how far is not known, or nothing runs. ``timings``: seconds, of the
    last prompt that was done (nninteractive_ws.messages.Timings)."""

    state: str = "idle"
    words: str = ""
    fraction: float | None = None
    timings: Any = None


def _connection(event):
    if event.state == "open":
        return Status("ready", _("Connected."))
    if event.state == "closed":
        return Status("idle", _("Not connected: {reason}").format(reason=event.reason))
    if event.retry_in is None:
        return Status("lost", _("{reason} It goes on with the next prompt.").format(reason=event.reason))
    words = _("Connection lost, trying again in {seconds:.0f} s; nothing is lost. {reason}")
    return Status("lost", words.format(seconds=event.retry_in, reason=event.reason))


def _imageProgress(event):
    if event.present == event.total:
        return Status("ready", _("The image is on the server."), 1.0)
    fraction = event.present / event.total
    return Status("uploading", _("Image {percent:.0f} %").format(percent=100 * fraction), fraction)


def _progress(event):
    if event.state == "queued":
        return Status("predicting", _("Queued: number {place} in line").format(place=event.n + 1))
    if event.state == "waiting_for_image":
        words = _("Waiting for the image around the prompt: {n} of {m}").format(n=event.n, m=event.m)
        return Status("predicting", words, event.n / event.m if event.m else None)
    if event.state == "refining" and event.m:
        return Status("predicting", _("Refining {n} of {m}").format(n=event.n, m=event.m), event.n / event.m)
    return Status("predicting", _("Predicting") if event.state == "predicting" else _("Refining"))


def _done(event):
    timings = event.result.timings
    return Status("ready", _("Done in {seconds:.1f} s").format(seconds=timings.total), None, timings)


def _failed(event):
    if isinstance(event.error, Cancelled):
        return Status("ready", _("Cancelled; the segment is as it was."))
    return Status("error", str(event.error))


def _notice(event):
    return Status("connecting" if event.code == "loading_model" else "ready", event.message)


_WORDS = {
    events.Connection: _connection,
    events.ImageProgress: _imageProgress,
    events.Progress: _progress,
    events.Done: _done,
    events.Failed: _failed,
    events.Notice: _notice,
}


def statusOf(event):
    """What an event of the session says, or None."""
    words = _WORDS.get(type(event))
    return None if words is None else words(event)
