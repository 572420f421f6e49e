"""Keyboard shortcuts that live only while the module is open."""

import qt


class Shortcuts:
    """``actions``: what is called, by name. ``window``: where the keys are heard."""

    def __init__(self, window, actions):
        self._window, self._actions = window, actions
        self._alive = []

    def create(self, keys):
        """``keys``: texts such as "Ctrl+Z", by the actions' names; those without a key have none."""
        self.remove()
        for name, key in keys.items():
            if key:
                shortcut = qt.QShortcut(qt.QKeySequence(key), self._window)
                shortcut.connect("activated()", self._actions[name])
                # Where another module left the same key behind, ours is meant.
                shortcut.connect("activatedAmbiguously()", self._actions[name])
                self._alive.append(shortcut)

    def remove(self):
        for shortcut in self._alive:
            shortcut.enabled = False  # at once; it is deleted when Qt comes to it
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._alive.clear()
