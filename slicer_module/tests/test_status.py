"""The status message of each event of the session."""

from nninteractive_ws import errors
from nninteractive_ws.client import events
from NNInteractiveWSLib.status import statusOf
import pytest


def progress(state, done=0, total=0):
    return events.Progress(request=1, segment="A", state=state, done=done, total=total)


@pytest.mark.parametrize(
    ("event", "state", "message", "fraction"),
    [
        (
            events.Notice("loading_model", "The model is loaded."),
            "connecting",
            "The model is loaded.",
            None,
        ),
        (events.Connection("open"), "ready", "Connected.", None),
        (events.ImageProgress(2, 5), "uploading", "Uploading the image: 40 %", 0.4),
        (events.ImageProgress(5, 5), "ready", "The image is on the server.", 1),
        (progress("queued", 1), "predicting", "Queued: number 2 in line", None),
        (progress("waiting_for_image", 1, 4), "predicting", "Waiting for the image around the prompt: 1 of 4", 0.25),
        (progress("predicting"), "predicting", "Predicting", None),
        (progress("refining", 3, 8), "predicting", "Refining 3 of 8", 3 / 8),
        (
            events.Connection("lost", reason="Gone.", retry_in=2.0),
            "lost",
            "trying again in 2 s. No work is lost. Gone.",
            None,
        ),
        (events.Connection("lost", reason="Gone."), "lost", "Gone. The next prompt connects again.", None),
        (events.Connection("closed", reason="Gone."), "disconnected", "Not connected: Gone.", None),
        (events.Failed(1, errors.Cancelled("cancelled")), "ready", "Canceled. The segment was reverted.", None),
        (events.Failed(1, errors.OutOfBounds("It is outside.")), "error", "It is outside.", None),
    ],
)
def test_status_of_an_event(event, state, message, fraction):
    status = statusOf(event)
    assert (status.state, status.fraction) == (state, fraction)
    assert message in status.message
