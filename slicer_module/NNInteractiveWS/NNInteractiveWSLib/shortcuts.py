"""Keyboard shortcuts that are active only while the module is open."""

import contextlib

import qt


class Shortcuts:
    """Shortcuts of a window. ``actions``: functions to call, by name."""

    def __init__(self, window, actions):
        self._window, self._actions = window, actions
        self._active = []
        self._replaced = []  # shortcuts of others with the same keys

    def create(self, keys):
        """Replace the shortcuts. ``keys``: texts such as "Ctrl+Z", by action. An empty text creates no shortcut.

        Shortcuts that other modules have left on the window are disabled meanwhile. With two shortcuts for a key, Qt
        would call them in turn.
        """
        self.remove()
        self._replaceOthers({qt.QKeySequence(key).toString() for key in keys.values() if key})
        for name, key in keys.items():
            if key:
                shortcut = qt.QShortcut(qt.QKeySequence(key), self._window)
                shortcut.context = qt.Qt.ApplicationShortcut  # views can be in a second window
                shortcut.connect("activated()", self._actions[name])
                # Another module may add a shortcut with the same key later. The open module's takes precedence.
                shortcut.connect("activatedAmbiguously()", self._actions[name])
                self._active.append(shortcut)

    def remove(self):
        for shortcut in self._active:
            shortcut.enabled = False  # takes effect at once, before the deferred deletion
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._active.clear()
        for shortcut in self._replaced:
            with contextlib.suppress(AttributeError):  # PythonQt's error if its module has deleted it
                shortcut.enabled = True
        self._replaced.clear()

    def _replaceOthers(self, keys):
        for child in self._window.children():
            if isinstance(child, qt.QShortcut) and child.enabled and child.key.toString() in keys:
                child.enabled = False
                self._replaced.append(child)
