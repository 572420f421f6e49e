"""Progress display for the events of a session."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nninteractive_ws.cli.console import stderr
from nninteractive_ws.client import events
from nninteractive_ws.client.aio import Callback
from nninteractive_ws.client.events import EventName


class SessionProgress:
    """Two progress lines, for the upload and the current request, below an optional overall one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._overall = progress.add_task("", total=None, visible=False)
        self._image = progress.add_task("image", total=None, visible=False)
        self._request = progress.add_task("connecting", total=None)

    @property
    def callbacks(self) -> dict[EventName, Callback]:
        return {
            "connection": self._on_connection,
            "notice": self._notice,
            "image_progress": self._on_image,
            "progress": self._on_progress,
        }

    def set_status(self, description: str) -> None:
        """Show the current activity."""
        self._progress.update(self._request, description=escape(description), total=None, completed=0)

    def set_overall(self, description: str, done: int, total: int) -> None:
        """Show the overall activity and progress."""
        self._progress.update(self._overall, visible=True, description=escape(description), total=total, completed=done)

    def _on_connection(self, event: events.Connection) -> None:
        if event.state == "lost":
            self.set_status(f"{event.reason} Reconnecting.")

    def _notice(self, event: events.Notice) -> None:
        self.set_status(event.message)

    def _on_image(self, event: events.ImageProgress) -> None:
        self._progress.update(self._image, visible=True, total=event.total, completed=event.present)

    def _on_progress(self, event: events.Progress) -> None:
        description = describe(event)
        counted = event.state in ("waiting_for_image", "refining")
        self._progress.update(
            self._request,
            description=description,
            total=event.total if counted else None,
            completed=event.done if counted else 0,
        )


def describe(event: events.Progress) -> str:
    """Describe the state of a request."""
    return {
        "queued": f"queued, {event.done} ahead",
        "waiting_for_image": f"waiting for the image, {event.done} of {event.total} parts",
        "predicting": "predicting",
        "refining": f"refining, {event.done} of {event.total}",
    }[event.state]


@contextmanager
def session_progress() -> Iterator[SessionProgress]:
    """Show the progress of a session on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield SessionProgress(progress)
