"""Keyboard shortcuts that are active only while the module is open."""

import qt


class Shortcuts:
    """Shortcuts of a window. ``actions``: functions to call, by name."""

    def __init__(self, window, actions):
        self._window, self._actions = window, actions
        self._active = []

    def create(self, keys):
        """Replace the shortcuts. ``keys``: texts such as "Ctrl+Z", by action. An empty text creates no shortcut."""
        self.remove()
        for name, key in keys.items():
            if key:
                shortcut = qt.QShortcut(qt.QKeySequence(key), self._window)
                shortcut.connect("activated()", self._actions[name])
                # Another module may have left a shortcut with the same key. The open module's takes precedence.
                shortcut.connect("activatedAmbiguously()", self._actions[name])
                self._active.append(shortcut)

    def remove(self):
        for shortcut in self._active:
            shortcut.enabled = False  # takes effect at once, before the deferred deletion
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._active.clear()
