"""Simulated clicks, drags and keys, sent to widgets as Qt events. Positions are in pixels of the widget."""

import qt

LEFT = qt.Qt.LeftButton
NONE = qt.Qt.NoModifier


def click(widget, x, y, button=LEFT, modifiers=NONE):
    press(widget, x, y, button, modifiers)
    release(widget, x, y, button, modifiers)


def drag(widget, points, button=LEFT, modifiers=NONE):
    """Press at the first point, move along the others, release at the last."""
    press(widget, *points[0], button, modifiers)
    for point in points[1:]:
        move(widget, *point, button, modifiers)
    release(widget, *points[-1], button, modifiers)


def press(widget, x, y, button=LEFT, modifiers=NONE):
    _mouse(widget, qt.QEvent.MouseButtonPress, x, y, button, button, modifiers)


def move(widget, x, y, buttons=qt.Qt.NoButton, modifiers=NONE):
    _mouse(widget, qt.QEvent.MouseMove, x, y, qt.Qt.NoButton, buttons, modifiers)


def release(widget, x, y, button=LEFT, modifiers=NONE):
    _mouse(widget, qt.QEvent.MouseButtonRelease, x, y, button, qt.Qt.NoButton, modifiers)


def key(widget, key, text="", modifiers=NONE):
    """Press and release a key in a widget. An active shortcut gets it first, as in the application."""
    for kind in (qt.QEvent.KeyPress, qt.QEvent.KeyRelease):
        qt.QApplication.sendEvent(widget, qt.QKeyEvent(kind, key, modifiers, text))


def _mouse(widget, kind, x, y, button, buttons, modifiers):
    position = qt.QPointF(x, y)
    qt.QApplication.sendEvent(widget, qt.QMouseEvent(kind, position, button, buttons, modifiers))
