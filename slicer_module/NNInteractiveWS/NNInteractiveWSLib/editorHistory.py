"""The Segment Editor's undo history, coordinated with the session's."""


class EditorHistory:
    """Undo and redo of manual edits, stroke by stroke, as long as the session has not written since.

    ``editor``: the qMRMLSegmentEditorWidget. ``logic``: the :class:`~NNInteractiveWSLib.logic.Logic`.
    """

    def __init__(self, editor, logic):
        self._editor, self._logic = editor, logic
        self._undone = 0
        self._labelmap = None

    def forget(self):
        """Clear the editor's history after the session has written. Its older states would revert the result."""
        # This clears the history. Setting the maximum number of states to 0 and back breaks it after an undo.
        self._editor.undoEnabled = True
        self._undone = 0

    def undo(self):
        """Undo the last stroke. Return whether there was one."""
        before = self._current()
        if not self._logic.hasEdits:
            return False
        self._editor.undo()
        if self._current() == before:
            return False
        self._keepCount(self._undone + 1 if before == self._labelmap else 1)
        return True

    @property
    def canRedo(self):
        """Whether a stroke was undone here and the segment has not changed since."""
        return self._undone > 0 and self._labelmap == self._current()

    def redo(self):
        """Redo the last undone stroke. Return whether there was one."""
        if not self.canRedo:
            return False
        self._editor.redo()
        self._keepCount(self._undone - 1)
        return True

    def _keepCount(self, undone):
        self._undone, self._labelmap = undone, self._current()

    def _current(self):
        """A value that changes with the voxels of the selected segment."""
        node, segmentID = self._editor.segmentationNode(), self._editor.currentSegmentID()
        segment = node.GetSegmentation().GetSegment(segmentID) if node is not None and segmentID else None
        labelmap = None if segment is None else segment.GetRepresentation("Binary labelmap")
        return segmentID, None if labelmap is None else (labelmap.__this__, labelmap.GetMTime())
