"""A session's events as a progress display."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from nninteractive_ws.cli.console import stderr
from nninteractive_ws.client import events
from nninteractive_ws.client.aio import Callback
from nninteractive_ws.client.events import EventName


class SessionProgress:
    """Two lines: the image on its way, and what the server does; and one above for a whole of which that is a part."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._whole = progress.add_task("", total=None, visible=False)
        self._image = progress.add_task("image", total=None, visible=False)
        self._work = progress.add_task("connecting", total=None)

    @property
    def callbacks(self) -> dict[EventName, Callback]:
        return {
            "connection": self._on_connection,
            "notice": self._notice,
            "image_progress": self._on_image,
            "progress": self._on_progress,
        }

    def say(self, words: str) -> None:
        """What is being done, in words."""
        self._progress.update(self._work, description=escape(words), total=None, completed=0)

    def whole(self, words: str, n: int, m: int) -> None:
        """What is being done, in words, and that ``n`` of ``m`` things are done."""
        self._progress.update(self._whole, visible=True, description=escape(words), total=m, completed=n)

    def _on_connection(self, event: events.Connection) -> None:
        if event.state == "lost":
            self.say(f"{event.reason} Trying again.")

    def _notice(self, event: events.Notice) -> None:
        self.say(event.message)

    def _on_image(self, event: events.ImageProgress) -> None:
        self._progress.update(self._image, visible=True, total=event.total, completed=event.present)

    def _on_progress(self, event: events.Progress) -> None:
        words = in_words(event)
        counted = event.state in ("waiting_for_image", "refining")
        self._progress.update(
            self._work, description=words, total=event.m if counted else None, completed=event.n if counted else 0
        )


def in_words(event: events.Progress) -> str:
    """What a request is doing, for people."""
    return {
        "queued": f"queued, {event.n} ahead",
        "waiting_for_image": f"waiting for the image, part {event.n} of {event.m}",
        "predicting": "predicting",
        "refining": f"refining, {event.n} of {event.m}",
    }[event.state]


@contextmanager
def session_progress() -> Iterator[SessionProgress]:
    """Show the progress of a session on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        yield SessionProgress(progress)
