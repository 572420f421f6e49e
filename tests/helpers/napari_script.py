"""A napari with nnInteractive's plug-in, operated by mouse and keyboard: ``python -m helpers.napari_script FOLDER``

It opens ``FOLDER/image.npy``. Each line of the input is a JSON list, an action of ``User`` with its arguments. The
answer is a line of JSON.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
import json
from pathlib import Path
import sys
import time
from typing import Any

import napari
from napari._app_model import get_app_model
from napari.utils.notifications import notification_manager
import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QPushButton, QTabWidget

#: Longer than the plug-in waits for an answer.
TIMEOUT_S = 90
WINDOW = (1180, 760)
#: The order of the plug-in's buttons and layers.
TOOLS = ("point", "bbox", "scribble", "lasso")

Voxel = Sequence[int]


class User:
    """Uses the plug-in as a person does. Each action returns what there is to tell of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._viewer = napari.Viewer()
        self._window = self._viewer.window._qt_window
        self._window.resize(*WINDOW)
        self._viewer.add_image(np.load(folder / "image.npy"), name="phantom", contrast_limits=(-160, 300))
        _, self._panel = self._viewer.window.add_plugin_dock_widget("napari-nninteractive")
        _process_events(0.5)

    # ---- the panel -----------------------------------------------------------------------------------------

    def enter_server(self, url: str, token: str = "") -> None:
        """Select the remote mode, and enter the address and the API key."""
        _click(self._panel.mode_switch.buttons[1])
        for field, text in ((self._panel.server_url_edit, url), (self._panel.api_key_edit, token)):
            field.selectAll()
            QTest.keyClicks(field, text)

    def initialize(self) -> dict[str, str]:
        """Press Initialize. Return the texts that the panel then shows."""
        panel = self._panel
        _click(panel.init_button)
        _wait_until(lambda: panel.init_button.isEnabled() and not panel.connect_btn.text().startswith("Connecting"))
        if panel.session is not None:
            _wait_until(lambda: panel._upload_dialog is None and panel.point_layer_name in self._viewer.layers)
        return {"status": panel.remote_status_label.text(), "license": panel.model_license_label.text()}

    def undo(self) -> None:
        _click(self._panel.undo_button)

    def reset(self) -> None:
        _click(self._panel.reset_interaction_button)

    def next_object(self) -> None:
        _click(self._panel.reset_button)

    def run_by_hand(self, on: bool) -> None:
        """Let prompts wait for the button Run."""
        self._panel.auto_run_ckbx.setChecked(not on)

    def run(self) -> None:
        _click(self._panel.run_button)

    def duplicate_mask(self) -> str:
        """Duplicate the label layer by its context menu. Return the name of the copy."""
        layers = self._viewer.layers
        layers.selection.active = layers[self._panel.label_layer_name]
        get_app_model().commands.execute_command("napari.layer.duplicate").result()
        return str(layers.selection.active.name)

    def initialize_with_mask(self, name: str) -> None:
        """Start from a label layer."""
        self._panel.label_for_init.setCurrentText(name)
        _click(self._panel.load_mask_btn)

    # ---- prompts -------------------------------------------------------------------------------------------

    def point(self, at: Voxel, positive: bool = True) -> list[int]:
        """Click at a voxel. Return the point."""
        layer = self._select("point", at[0], positive)
        self._drag([at])
        return [round(x) for x in layer.get_last()]

    def bbox(self, first: Voxel, last: Voxel, positive: bool = True) -> list[list[int]]:
        """Drag from one corner of a rectangle to the other. Return the box as half-open ranges."""
        layer = self._select("bbox", first[0], positive)
        self._drag([first, last])
        return [[round(a), round(b)] for a, b in self._panel._bbox_to_half_open_intervals(layer.get_last())]

    def scribble(self, path: Sequence[Voxel], positive: bool = True) -> list[list[int]]:
        """Draw a line. Return its voxels."""
        layer = self._select("scribble", path[0][0], positive)
        before = layer.data.copy()
        self._drag(path)
        return _voxels(layer.data != before)

    def lasso(self, path: Sequence[Voxel], positive: bool = True) -> list[list[int]]:
        """Draw an outline. Return the voxels inside."""
        layer = self._select("lasso", path[0][0], positive)
        self._drag(path)
        crop, box = layer.get_last()
        inside = np.zeros(self._mask.shape, bool)
        inside[tuple(slice(a, b) for a, b in box)] = crop
        return _voxels(inside)

    def _select(self, tool: str, axial: int, positive: bool) -> Any:
        """Select a slice, the polarity and a tool by their buttons. Return the tool's layer."""
        self._viewer.dims.set_current_step(0, axial)
        _click(self._panel.prompt_button.buttons[0 if positive else 1])
        index = TOOLS.index(tool)
        _click(self._panel.interaction_button.buttons[index])
        return self._viewer.layers[self._panel.layer_dict[index]]

    def _drag(self, path: Sequence[Voxel]) -> None:
        """Press the left button at the first voxel, move to the others, and release it."""
        canvas = self._viewer.window._qt_viewer.canvas
        widget = canvas.native
        places = [self._place(voxel) for voxel in path]
        left = Qt.MouseButton.LeftButton
        QTest.mouseMove(widget, places[0])
        _process_events()
        QTest.mousePress(widget, left, pos=places[0])
        for start, end in pairwise(places):
            for part in (0.25, 0.5, 0.75, 1):
                QTest.mouseMove(widget, start + (end - start) * part)
                _process_events()
        QTest.mouseRelease(widget, left, pos=places[-1])
        _process_events()

    def _place(self, voxel: Voxel) -> QPoint:
        """Return the position of a voxel of the visible slice on the canvas."""
        canvas = self._viewer.window._qt_viewer.canvas
        origin, right, down = (
            np.array(canvas._map_canvas2world(p, canvas.view)[-2:]) for p in ((0, 0), (1, 0), (0, 1))
        )
        x, y = np.linalg.solve(np.column_stack((right - origin, down - origin)), np.array(voxel[1:]) - origin)
        return QPoint(round(x), round(y))

    # ---- what is to be seen ----------------------------------------------------------------------------------

    @property
    def _mask(self) -> npt.NDArray[np.uint8]:
        mask: npt.NDArray[np.uint8] = self._viewer.layers[self._panel.label_layer_name].data
        return mask

    def mask(self) -> None:
        """Save the label layer."""
        np.save(self._folder / "mask.npy", self._mask)

    def notes(self) -> list[str]:
        """Return napari's notifications since the last call: "warning: Nothing to undo."."""
        notes = [f"{note.severity.value}: {note.message}" for note in notification_manager.records]
        notification_manager.records.clear()
        return notes

    def screenshots(self, window: str, settings: str) -> None:
        """Save pictures of the window and of the panel's second tab."""
        _process_events(1)
        self._window.grab().save(window)
        tabs = self._panel.findChild(QTabWidget)
        tabs.setCurrentIndex(1)
        _process_events(1)
        self._panel.grab().save(settings)
        tabs.setCurrentIndex(0)


def _click(button: QPushButton) -> None:
    assert button.isEnabled(), button.text()
    button.click()
    _process_events()


def _process_events(seconds: float = 0.05) -> None:
    until = time.monotonic() + seconds
    while True:
        QApplication.processEvents()
        if time.monotonic() > until:
            return
        time.sleep(0.01)


def _wait_until(true: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not true():
        if time.monotonic() > until:
            raise TimeoutError
        _process_events()


def _voxels(mask: npt.NDArray[np.bool_]) -> list[list[int]]:
    found: list[list[int]] = np.argwhere(mask).tolist()
    return found


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # the plug-in prints
    user = User(Path(sys.argv[1]))
    print(json.dumps(napari.__version__), file=answers, flush=True)
    with notification_manager:  # as in napari.run(), errors in callbacks become notifications
        for line in sys.stdin:
            action, *arguments = json.loads(line)
            print(json.dumps(getattr(user, action)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    main()
