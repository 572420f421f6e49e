"""The Segment Editor's own undo, so that it and the session's do not fight."""


class EditorHistory:
    """What was painted by hand is taken back stroke by stroke, as long as the session has not written since.

    ``editor``: the qMRMLSegmentEditorWidget. ``logic``: the :class:`~NNInteractiveWSLib.logic.Logic`.
    """

    def __init__(self, editor, logic):
        self._editor, self._logic = editor, logic
        self._undone = 0
        self._labelmap = None

    def forget(self):
        """The session has written: each of the editor's states is of before, and going back to one would wipe that."""
        # This empties the history; setting the most states to 0 and back leaves it broken after an undo.
        self._editor.undoEnabled = True
        self._undone = 0

    def undo(self):
        """Take back what was painted last; whether there was anything."""
        before = self._current()
        if not self._logic.paintedByHand:
            return False
        self._editor.undo()
        if self._current() == before:
            return False
        self._keepCount(self._undone + 1 if before == self._labelmap else 1)
        return True

    @property
    def canRedo(self):
        """Whether nothing has happened since something was taken back here."""
        return self._undone > 0 and self._labelmap == self._current()

    def redo(self):
        """Paint again what was taken back; whether there was anything."""
        if not self.canRedo:
            return False
        self._editor.redo()
        self._keepCount(self._undone - 1)
        return True

    def _keepCount(self, undone):
        self._undone, self._labelmap = undone, self._current()

    def _current(self):
        """What changes with the voxels of the selected segment."""
        node, segmentID = self._editor.segmentationNode(), self._editor.currentSegmentID()
        segment = node.GetSegmentation().GetSegment(segmentID) if node is not None and segmentID else None
        labelmap = None if segment is None else segment.GetRepresentation("Binary labelmap")
        return segmentID, None if labelmap is None else (labelmap.__this__, labelmap.GetMTime())
