"""Fake of ``slicer.parameterNodeWrapper``: a class whose attributes are stored in a parameter node of the scene.

It supports the types bool, int, float, str and MRML nodes, and plain Qt widgets. The dynamic property
``SlicerParameterName`` of a widget names its parameter. As in Slicer 5.10, ``connectGui`` returns no tag. Only
``connectParametersToGui`` returns a tag for ``disconnectGui``.
"""

import typing

import qt
import slicer
import vtk

_CONNECTORS = {
    # type: for each widget class, its property and the signal for changes
    bool: {qt.QCheckBox: ("checked", "toggled(bool)"), qt.QPushButton: ("checked", "toggled(bool)")},
    int: {qt.QSpinBox: ("value", "valueChanged(int)"), qt.QSlider: ("value", "valueChanged(int)")},
    float: {qt.QDoubleSpinBox: ("value", "valueChanged(double)")},
    str: {
        qt.QLineEdit: ("text", "textChanged(QString)"),
        qt.QComboBox: ("currentText", "currentTextChanged(QString)"),
    },
}


def parameterNodeWrapper(cls):
    """Turn the annotated attributes of a class into parameters. ``cls(parameterNode)`` reads and writes the node."""
    types = typing.get_type_hints(cls)
    cls.defaults = {}
    for name, kind in types.items():
        if isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode):
            setattr(cls, name, _nodeProperty(name))
        else:
            cls.defaults[name] = getattr(cls, name, kind())
            setattr(cls, name, _valueProperty(name, kind, cls.defaults[name]))
    cls.__init__ = _init
    cls.allParameters = types
    cls.connectGui = _connectGui
    cls.connectParametersToGui = _connectParametersToGui
    cls.disconnectGui = _disconnectGui
    cls.AddObserver = lambda self, *arguments: self.parameterNode.AddObserver(*arguments)
    cls.RemoveObserver = lambda self, tag: self.parameterNode.RemoveObserver(tag)
    return cls


def _init(self, parameterNode):
    self.parameterNode = parameterNode
    self._connections = {}
    for name, default in self.defaults.items():
        if not parameterNode.HasParameter(name):
            parameterNode.SetParameter(name, str(default))


def _nodeProperty(name):
    return property(
        lambda self: self.parameterNode.GetNodeReference(name),
        lambda self, node: self.parameterNode.SetNodeReferenceID(name, node.GetID() if node else None),
    )


def _valueProperty(name, kind, default):
    def read(self):
        text = self.parameterNode.GetParameter(name) if self.parameterNode.HasParameter(name) else str(default)
        return text == "True" if kind is bool else kind(text)

    def write(self, value):
        if type(value) is not kind:
            raise TypeError(f"{name} is a {kind.__name__}, not {value!r}")
        self.parameterNode.SetParameter(name, str(value))

    return property(read, write)


def _connectGui(self, ui):
    """Connect all widgets of ``ui``, a result of ``slicer.util.childWidgetVariables``."""
    named = {widget.property("SlicerParameterName"): widget for widget in vars(ui).values()}
    named.pop(None, None)
    _connectParametersToGui(self, named)


def _connectParametersToGui(self, widgets):
    """Synchronize widgets and parameters in both directions. ``widgets``: by parameter name."""
    bound = [(widget, *_connector(self.allParameters[name], widget), name) for name, widget in widgets.items()]

    def show(caller=None, event=None):
        for widget, prop, _, name in bound:
            if getattr(widget, prop) != getattr(self, name):
                setattr(widget, prop, getattr(self, name))

    show()
    receivers = []
    for widget, prop, signal, name in bound:

        def store(_, widget=widget, prop=prop, name=name):
            setattr(self, name, getattr(widget, prop))

        widget.connect(signal, store)
        receivers.append((widget, signal, store))
    tag = self.parameterNode.AddObserver(vtk.vtkCommand.ModifiedEvent, show)
    self._connections[tag] = receivers
    return tag


def _disconnectGui(self, tag):
    if tag not in self._connections:
        return
    self.parameterNode.RemoveObserver(tag)
    for widget, signal, receiver in self._connections.pop(tag):
        widget.disconnect(signal, receiver)


def _connector(kind, widget):
    for cls, connector in _CONNECTORS[kind].items():
        if isinstance(widget, cls):
            return connector
    raise TypeError(f"{widget.className()} {widget.objectName!r} cannot show a {kind.__name__}")
