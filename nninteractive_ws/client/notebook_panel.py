"""The widgets of a view in a notebook: NiiVue, which shows the slices, a toolbar, and a status line.

The names of NiiVue's messages are those of ipyniivue 2.4, which has no documented way to change a part of a drawing.
"""

from collections.abc import Callable, Iterable, Sequence
from html import escape
import math
from typing import Any, Literal

import ipyniivue
from ipyniivue.traits import ColorMap
import ipywidgets
import numpy as np
import numpy.typing as npt

Tool = Literal["point", "box", "scribble", "lasso"]
Color = tuple[int, int, int]

FIRST_SEGMENT = "segment 1"
OPACITY = 0.5
HEIGHT_PX = 560
#: A press and a release within this distance are a click.
CLICK_PX = 6


class Drag:
    """The positions of the pointer from the press of the left button to its release.

    NiiVue reports the positions with the button down, and that the pointer moves, but not that the button was released
    outside. ``positions``: fractions of the volume along each display axis. ``view``: 0 axial, 1 coronal, 2 sagittal.
    """

    def __init__(self) -> None:
        self.positions: list[Sequence[float]] = []
        self.view = 0
        self._pixels: list[Sequence[float]] = []
        self._has_moved = self._is_over = False

    def move(self, location: dict[str, Any]) -> bool:
        """Add a position of the crosshair. Return False for one that was set by the wheel or the keyboard."""
        if location["ax_cor_sag"] not in (0, 1, 2):
            return False
        if self._is_over:
            self.clear()
        self.view = location["ax_cor_sag"]
        self.positions.append(location["frac"])
        self._pixels.append(location["xy"])
        self._has_moved, self._is_over = True, False
        return True

    def hover(self) -> None:
        """Note a movement of the pointer, with the button down or not."""
        self._is_over = not self._has_moved
        self._has_moved = False

    def clear(self) -> None:
        self.positions, self._pixels = [], []

    @property
    def is_click(self) -> bool:
        """Whether the pointer stayed in place."""
        return math.dist(self._pixels[0], self._pixels[-1]) <= CLICK_PX


class Panel:
    """The widgets of a view.

    ``nifti``: a file of the volume, on the axes of the display. ``colors``: of the labels from 1 on. The callbacks are
    called on the thread of the kernel: ``on_load`` when the browser has opened the volume, also after the page was
    reloaded; ``on_move`` and ``on_release`` with a drag; ``on_action`` with "undo", "redo" or "reset".
    """

    def __init__(
        self,
        nifti: bytes,
        tools: Sequence[Tool],
        colors: Sequence[Color],
        *,
        on_load: Callable[[], None],
        on_move: Callable[[Drag], None],
        on_release: Callable[[Drag], None],
        on_action: Callable[[str], None],
    ) -> None:
        self._on_move, self._on_release = on_move, on_release
        self._drag = Drag()
        self._is_enabled = True
        self._volume, self._viewer = _make_viewer(nifti, colors)
        self._viewer.on_image_loaded(lambda _: on_load())
        self._viewer.on_hover_idx_change(lambda _: self._drag.hover())
        self._viewer.on_location_change(self._move)
        self._viewer.on_mouse_up(self._release)
        self._segments = ipywidgets.Dropdown(options=[FIRST_SEGMENT], description="Segment")
        self._new_name = ipywidgets.Text(placeholder="Name of a new segment", continuous_update=False)
        self._new_name.observe(self._add_name, "value")
        self._tool = ipywidgets.ToggleButtons(options=[(tool.capitalize(), tool) for tool in tools])
        self._sign = ipywidgets.ToggleButtons(options=[("Positive", True), ("Negative", False)])
        for buttons in (self._tool, self._sign):
            buttons.style.button_width = "auto"
        self._actions = [_button(name, on_action) for name in ("undo", "redo", "reset")]
        self._legend, self._status = ipywidgets.HTML(), ipywidgets.HTML()
        self.widget = ipywidgets.VBox(
            [
                ipywidgets.HBox([self._segments, self._new_name]),
                ipywidgets.HBox([self._tool, self._sign, *self._actions], layout={"flex_flow": "row wrap"}),
                self._viewer,
                self._legend,
                self._status,
            ]
        )

    # ---- choices of the user -----------------------------------------------------------------------------

    @property
    def segment(self) -> str:
        """Name of the selected segment."""
        name: str = self._segments.value
        return name

    @property
    def tool(self) -> Tool:
        """The selected tool."""
        tool: Tool = self._tool.value
        return tool

    @property
    def positive(self) -> bool:
        """Whether prompts mark the segment, and not the background."""
        return bool(self._sign.value)

    # ---- display ------------------------------------------------------------------------------------------

    def show_segments(self, segments: Sequence[tuple[str, int, Color]]) -> None:
        """Offer these segments, each with its number of voxels and its color. The selected one stays selected."""
        self._offer([name for name, _, _ in segments], self.segment)
        self._legend.value = " &emsp; ".join(
            f'<span style="color: rgb{color}">■</span> {escape(name)}: {voxels:,} voxels'
            for name, voxels, color in segments
        )

    def _offer(self, names: Iterable[str], selected: str) -> None:
        """Offer segments. The selected one needs no prompt yet."""
        options = tuple(dict.fromkeys([*names, selected]))
        if options != self._segments.options:
            self._segments.options = options
            self._segments.value = selected

    def show_status(self, text: str) -> None:
        self._status.value = escape(text)

    def enable_labels(self) -> None:
        """Switch the pen off, which made the browser allocate the drawing. It has no labels then."""
        self._viewer.send({"type": "set_drawing_enabled", "data": [False]})

    def set_labels(self, offsets: npt.NDArray[np.uint32], labels: npt.NDArray[np.uint8]) -> int:
        """Change labels in the browser. Return the number of bytes sent."""
        if len(offsets) == 0:
            return 0
        target = {"attr": "drawBitmap", "type": "uint8", "indices_type": "uint32"}
        buffers = [offsets.tobytes(), labels.tobytes()]
        self._viewer.send({"type": "buffer_update", "data": target}, buffers=buffers)
        return sum(map(len, buffers))

    def disable(self) -> None:
        """Keep the picture, and accept no more prompts."""
        for control in (self._segments, self._new_name, self._tool, self._sign, *self._actions):
            control.disabled = True
        self._is_enabled = False

    def close(self) -> None:
        """Remove the widgets from the page."""
        for widget in (*self.widget.children, self._volume, self.widget):
            widget.close()

    # ---- messages of the browser --------------------------------------------------------------------------

    def _add_name(self, change: dict[str, Any]) -> None:
        if name := change["new"].strip():
            self._offer(self._segments.options, name)
            self._segments.value = name
            self._new_name.value = ""

    def _move(self, location: dict[str, Any]) -> None:
        if self._is_enabled and self._drag.move(location):
            self._on_move(self._drag)

    def _release(self, _button: object) -> None:
        if self._is_enabled and self._drag.positions:
            self._on_release(self._drag)
        self._drag.clear()


def _button(name: str, on_click: Callable[[str], None]) -> Any:
    button = ipywidgets.Button(description=name.capitalize(), layout={"width": "auto"})
    button.on_click(lambda _: on_click(name))
    return button


def _make_viewer(nifti: bytes, colors: Sequence[Color]) -> tuple[Any, Any]:
    """Return the volume and its viewer, without segments."""
    viewer = ipyniivue.NiiVue(
        height=HEIGHT_PX,
        multiplanar_force_render=True,
        multiplanar_layout=ipyniivue.MultiplanarType.GRID,
        is_radiological_convention=True,
        # The browser allocates a drawing if the pen is on. This pen draws nothing.
        drawing_enabled=True,
        pen_value=0,
    )
    volume = ipyniivue.Volume(name="image.nii", data=nifti)
    for widget in (viewer, volume):
        _ignore_echoes(widget)
    volume.img = np.zeros(0, np.uint8)  # ipyniivue does not report that a volume without voxels was loaded
    viewer.load_volumes([volume])
    red, green, blue = zip((0, 0, 0), *colors, strict=True)
    viewer.set_draw_colormap(ColorMap(R=red, G=green, B=blue, A=[0] + len(colors) * [255]))
    viewer.draw_opacity = OPACITY
    return volume, viewer


def _ignore_echoes(widget: Any) -> None:
    """Ignore the voxels that the browser returns. ipyniivue would send them to the browser again."""
    set_state = widget.set_state
    widget.set_state = lambda state: set_state({k: v for k, v in state.items() if not k.startswith("chunk_")})
