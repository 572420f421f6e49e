"""Find what a module for Slicer uses of Slicer's API, by its Python source.

The class of each object follows from assignments, from the results of known calls, and from tables of hints.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from xml.etree import ElementTree

from tools.cpp_declarations import METHOD, PROPERTY
from tools.slicer_api import Api, NotChecked

#: Kinds of a :class:`Value`. ``PLAIN`` is any object that is not from Slicer, Qt or VTK.
INSTANCE, CLASS, MODULE, PLAIN, UI = "instance", "class", "module", "plain", "ui"
FUNCTION, BOUND, PYTHON_CLASS, PYTHON_INSTANCE = "function", "bound", "python class", "python instance"
OWN_CLASS, OWN_INSTANCE, OWN_FUNCTION, SUPER = "own class", "own instance", "own function", "super"

_API_MODULES = {"slicer", "qt", "ctk", "vtk", "SampleData"}
#: Methods with the name of the returned node's class as an argument, and the index of that argument.
_CLASS_ARGUMENT = {
    "AddNewNodeByClass": 0,
    "CreateNodeByClass": 0,
    "GetFirstNodeByClass": 0,
    "GetNthNodeByClass": 1,
    "GetSingletonNode": 1,
}


@dataclass(frozen=True)
class Hints:
    """Facts that the source does not tell. The class ``ui`` stands for an object with all widgets of the panel.

    ``objects``: class of an object, by an expression in the source such as ``self.editor``, or by a function and its
    parameter, such as ``pick.view``. A file and a colon may precede both. The class is empty for an object that is not
    from Slicer. ``results``: class of the object that a method or property returns, by ``class.name``. ``attributes``:
    class of an attribute of the module ``slicer``.
    """

    objects: Mapping[str, str]
    results: Mapping[str, str]
    attributes: Mapping[str, str]


@dataclass(frozen=True)
class Value:
    """Facts about the value of an expression. ``name``: of its class or module. ``node``: own definition."""

    kind: str
    name: str = ""
    node: ast.AST | None = None
    owner: "Value | None" = None


_PLAIN = Value(PLAIN)


@dataclass(frozen=True)
class Usage:
    """One use of a member.

    ``receiver``: None if its class is unknown. ``action``: call, read, write, signal, or operand, which is a read whose
    value is not passed on. The ``name`` of a signal is a signature such as ``clicked(bool)``. ``arguments``: number of
    arguments of a call, or None if the source does not tell. ``optional``: whether the module does without it, as it
    catches ImportError.
    """

    place: str
    receiver: Value | None
    expression: str
    name: str
    action: str
    arguments: int | None = None
    keywords: tuple[str, ...] = ()
    optional: bool = False


class Source:
    """One Python file of the module."""

    def __init__(self, path: Path, root: Path) -> None:
        self.name = path.stem
        self.file = path.name
        self.shown = str(path.relative_to(root))
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.scopes: dict[ast.AST, dict[str, list[_Binding]]] = {
            scope: _bindings(scope) for scope in ast.walk(self.tree) if isinstance(scope, _SCOPES)
        }
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def enclosing(self, node: ast.AST) -> Iterator[ast.AST]:
        """The scopes around a node, the innermost first."""
        while (parent := self.parents.get(node)) is not None:
            node = parent
            if isinstance(node, _SCOPES):
                yield node

    def enclosing_class(self, node: ast.AST) -> ast.ClassDef | None:
        return next((scope for scope in self.enclosing(node) if isinstance(scope, ast.ClassDef)), None)

    def catches_import_errors(self, node: ast.AST) -> bool:
        parent = self.parents[node]
        return isinstance(parent, ast.Try) and any("ImportError" in ast.dump(each) for each in parent.handlers)


_OPERATIONS = ast.Attribute | ast.BinOp | ast.BoolOp | ast.Compare | ast.Subscript | ast.UnaryOp
_TESTS = ast.If | ast.IfExp | ast.While | ast.Assert
_COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_SCOPES = ast.Module | ast.ClassDef | ast.FunctionDef | ast.Lambda | _COMPREHENSIONS
#: A value, ``(iterable,)`` for an element of an iterable, or a definition.
_Binding = ast.AST | tuple[ast.expr]


def _bindings(scope: ast.AST) -> dict[str, list[_Binding]]:
    """The values that are bound to each name in a scope, in the order of the source."""
    found: dict[str, list[_Binding]] = {}

    def bind(target: ast.expr, value: _Binding) -> None:
        if isinstance(target, ast.Name):
            found.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple | ast.List):
            element: _Binding = value if isinstance(value, tuple) else (value,)  # type: ignore[assignment]
            values: Sequence[_Binding] = value.elts if isinstance(value, ast.Tuple) else [element] * len(target.elts)
            for each, part in zip(target.elts, values, strict=False):
                bind(each, part)

    for node in _own_nodes(scope):
        match node:
            case ast.Assign():
                for target in node.targets:
                    bind(target, node.value)
            case ast.AnnAssign(target=target, value=ast.expr() as value) | ast.NamedExpr(target=target, value=value):
                bind(target, value)
            case ast.For() | ast.comprehension():
                bind(node.target, (node.iter,))
            case ast.withitem(optional_vars=ast.expr() as target):
                bind(target, node.context_expr)
            case ast.FunctionDef() | ast.ClassDef():
                found.setdefault(node.name, []).append(node)
            case ast.Import() | ast.ImportFrom():
                for alias in node.names:
                    found.setdefault((alias.asname or alias.name).split(".")[0], []).append(node)
            case ast.ExceptHandler(name=str(name)):
                found.setdefault(name, []).append(ast.Constant(None))
    return found


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a scope without those of the scopes in it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, _SCOPES):
            yield from _own_nodes(child)


class Module:
    """The Python files and the panel of a module for Slicer in a folder."""

    def __init__(self, folder: Path, api: Api, hints: Hints) -> None:
        self.api, self.hints = api, hints
        self.sources = [Source(path, folder) for path in sorted(folder.rglob("*.py"))]
        self.widgets = {
            widget.get("name", ""): widget.get("class", "")
            for path in sorted(folder.rglob("*.ui"))
            for widget in ElementTree.parse(path).iter("widget")
        }
        self._by_name = {source.name: source for source in self.sources}
        self._source_of = {scope: source for source in self.sources for scope in source.scopes}
        self._active: set[ast.AST] = set()
        self._known: dict[ast.AST, Value] = {}

    # ---- usages --------------------------------------------------------------------------------------------------

    def usages(self) -> Iterator[Usage]:
        """Yield each use of Slicer's API, in the order of the source."""
        for source in self.sources:
            for node in sorted(ast.walk(source.tree), key=lambda node: getattr(node, "lineno", 0)):
                yield from self._usages_at(source, node)

    def _usages_at(self, source: Source, node: ast.AST) -> Iterator[Usage]:
        match node:
            case ast.Attribute():
                yield from self._attribute_usage(source, node)
            case ast.Call(func=ast.Name(id="getattr"), args=[receiver, ast.Constant(value=str(name)), *_]):
                yield from self._usage(source, node, receiver, name, "read")
            case ast.Call(func=ast.Name()):
                yield from self._name_call(source, node)
            case ast.Tuple(elts=[ast.Constant(value=str(widget)), ast.Constant(value=str(name))]):
                if widget in self.widgets and isinstance(source.parents[node], ast.Dict):  # set later by setattr
                    receiver_value = Value(INSTANCE, self.widgets[widget])
                    yield Usage(self._place(source, node), receiver_value, f"ui.{widget}", name, "write")
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in _API_MODULES:
                for alias in node.names:
                    value, optional = Value(MODULE, module), source.catches_import_errors(node)
                    yield Usage(self._place(source, node), value, module, alias.name, "read", optional=optional)

    def _attribute_usage(self, source: Source, node: ast.Attribute) -> Iterator[Usage]:
        parent = source.parents[node]
        if isinstance(parent, ast.Call) and parent.func is node:
            yield from self._usage(source, node, node.value, node.attr, "call", parent)
            match parent.args:
                case [ast.Constant(value=str(signal)), _] if node.attr in ("connect", "disconnect"):
                    yield from self._usage(source, node, node.value, signal, "signal")
        else:
            is_operand = isinstance(parent, _OPERATIONS) or (isinstance(parent, _TESTS) and parent.test is node)
            action = "write" if isinstance(node.ctx, ast.Store) else "operand" if is_operand else "read"
            yield from self._usage(source, node, node.value, node.attr, action)

    def _usage(
        self, source: Source, node: ast.AST, receiver: ast.expr, name: str, action: str, call: ast.Call | None = None
    ) -> Iterator[Usage]:
        value = self.infer(source, receiver)
        if name.startswith("__") or (value is not None and not self._is_api(value, name)):
            return
        arguments, keywords = _arguments(call)
        yield Usage(self._place(source, node), value, ast.unparse(receiver), name, action, arguments, keywords)

    def _name_call(self, source: Source, node: ast.Call) -> Iterator[Usage]:
        """A call of an imported function of Slicer, such as ``_`` for ``slicer.i18n.tr``."""
        value = self.infer(source, node.func)
        if value is not None and value.kind in (FUNCTION, PYTHON_CLASS):
            module, _dot, name = value.name.rpartition(".")
            arguments, keywords = _arguments(node)
            receiver = Value(MODULE, module)
            yield Usage(self._place(source, node), receiver, module, name, "call", arguments, keywords)

    def _place(self, source: Source, node: ast.AST) -> str:
        return f"{source.shown}:{getattr(node, 'lineno', 0)}"

    def _is_api(self, value: Value, name: str) -> bool:
        if value.kind in (INSTANCE, CLASS, PYTHON_CLASS, PYTHON_INSTANCE, MODULE):
            return not value.name.startswith("own:")
        if value.kind == UI:
            return name not in self.widgets
        if value.kind in (OWN_INSTANCE, OWN_CLASS, SUPER):
            return not self._is_own(value, name) and self._api_base(value) is not None
        return False

    # ---- inference -----------------------------------------------------------------------------------------------

    def infer(self, source: Source, node: ast.AST) -> Value | None:
        """The value of an expression, or None if it is unknown."""
        if node in self._active or node in self._known:
            return self._known.get(node)  # unknown if it depends on itself
        self._active.add(node)
        try:
            found = self._infer(source, node)
            if found is None and isinstance(node, ast.expr):
                found = self._hint(source, ast.unparse(node))
            if found is not None:
                self._known[node] = found
            return found
        finally:
            self._active.discard(node)

    def _hint(self, source: Source, expression: str) -> Value | None:
        for key in (f"{source.file}: {expression}", expression):
            if key in self.hints.objects:
                return self._instance(self.hints.objects[key])
        return None

    def _instance(self, name: str) -> Value:
        """An instance of a class: of Slicer, or of this module."""
        if not name or name == UI:
            return Value(UI) if name else _PLAIN
        for source in self.sources:
            for node in source.scopes:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    return Value(OWN_INSTANCE, name, node)
        return Value(INSTANCE, name)

    def _infer(self, source: Source, node: ast.AST) -> Value | None:
        match node:
            case ast.Name():
                return self._infer_name(source, node)
            case ast.Attribute():
                owner = self.infer(source, node.value)
                return None if owner is None else self._member(owner, node.attr)
            case ast.Call():
                return self._infer_call(source, node)
            case ast.IfExp():
                return self._first([self.infer(source, node.body), self.infer(source, node.orelse)])
            case ast.BoolOp():
                return self._first([self.infer(source, value) for value in node.values])
            case ast.NamedExpr() | ast.Starred():
                return self.infer(source, node.value)
            case ast.Subscript():
                value = self.infer(source, node.value)
                return value if value is not None and value.kind == PLAIN else None
            case ast.Constant(value=None):
                return None
        return _PLAIN if isinstance(node, ast.expr) else None

    def _first(self, values: Sequence[Value | None]) -> Value | None:
        """The most specific one of some alternatives."""
        known = [value for value in values if value is not None]
        return next((value for value in known if value.kind != PLAIN), known[0] if known else None)

    def _infer_name(self, source: Source, node: ast.Name) -> Value | None:
        scopes = list(source.enclosing(node))
        for scope in scopes:
            if isinstance(scope, ast.ClassDef) and scope is not scopes[0]:
                continue  # names of a class are not visible in its methods
            if isinstance(scope, ast.FunctionDef | ast.Lambda) and node.id in _parameters(scope):
                return self._infer_parameter(source, scope, node)
            if node.id in source.scopes[scope]:
                bindings = source.scopes[scope][node.id]
                return self._first([self._infer_binding(source, binding, node.id) for binding in bindings])
        return _PLAIN if node.id in _BUILTINS else None

    def _infer_parameter(self, source: Source, scope: ast.AST, node: ast.Name) -> Value | None:
        names = _parameters(scope)  # type: ignore[arg-type]
        owner = source.parents[scope]
        decorators = {ast.unparse(d) for d in getattr(scope, "decorator_list", ())}
        if isinstance(owner, ast.ClassDef) and node.id == names[0] and "staticmethod" not in decorators:
            kind = OWN_CLASS if "classmethod" in decorators else OWN_INSTANCE
            return Value(kind, owner.name, owner)
        hint = self._hint(source, f"{getattr(scope, 'name', '')}.{node.id}")
        return hint or self._annotated(source, scope, node.id) or self._passed(source, scope, node.id)

    def _annotated(self, source: Source, scope: ast.AST, name: str) -> Value | None:
        arguments = scope.args  # type: ignore[attr-defined]
        for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if each.arg == name and each.annotation is not None:
                return self._of_annotation(source, each.annotation)
        return None

    def _of_annotation(self, source: Source, annotation: ast.expr) -> Value | None:
        if isinstance(annotation, ast.Name) and annotation.id == "Any":
            return None
        value = self.infer(source, annotation)
        if value is not None and value.kind == OWN_CLASS:
            return Value(OWN_INSTANCE, value.name, value.node)
        return _PLAIN if value is not None else None

    def _passed(self, source: Source, scope: ast.AST, name: str) -> Value | None:
        """The arguments that calls in this module pass for a parameter of a function."""
        owner = source.parents[scope]
        is_method = isinstance(owner, ast.ClassDef)
        called = owner if is_method and getattr(scope, "name", "") == "__init__" else scope
        names = _parameters(scope)[1 if is_method else 0 :]  # type: ignore[arg-type]
        if name not in names:
            return None
        found = []
        for caller, call in self._calls.get(getattr(called, "name", ""), ()):
            function = self.infer(caller, call.func)
            argument = _argument(call, names.index(name), name)
            if argument is not None and function is not None and function.node is called:
                found.append(self.infer(caller, argument))
        return self._first(found)

    @cached_property
    def _calls(self) -> dict[str, list[tuple[Source, ast.Call]]]:
        """All calls, by the name of what is called."""
        found: dict[str, list[tuple[Source, ast.Call]]] = {}
        for source in self.sources:
            for node in ast.walk(source.tree):
                match node:
                    case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                        found.setdefault(name, []).append((source, node))
        return found

    def _infer_binding(self, source: Source, binding: _Binding, name: str) -> Value | None:
        match binding:
            case (ast.Tuple(elts=elements) | ast.List(elts=elements),):
                return self._first([self.infer(source, element) for element in elements])
            case (ast.Call(func=ast.Name(id="range")),):
                return _PLAIN
            case (iterable,):
                return self._hint(source, f"{ast.unparse(iterable)}[]")
            case ast.FunctionDef():
                return Value(OWN_FUNCTION, binding.name, binding)
            case ast.ClassDef():
                return Value(OWN_CLASS, binding.name, binding)
            case ast.Import() | ast.ImportFrom():
                return self._infer_import(source, binding, name)
            case ast.AnnAssign():
                return self._of_annotation(source, binding.annotation)
        return self.infer(source, binding) if isinstance(binding, ast.AST) else None

    def _infer_import(self, source: Source, node: ast.Import | ast.ImportFrom, name: str) -> Value | None:
        alias = next(each for each in node.names if (each.asname or each.name).split(".")[0] == name)
        if isinstance(node, ast.Import):
            root = alias.name.split(".")[0]
            return Value(MODULE, root) if root in _API_MODULES else _PLAIN
        module = (node.module or "").split(".")
        if alias.name in self._by_name and (node.level or module[-1].endswith("Lib")) and node.module != alias.name:
            return Value(MODULE, f"own:{alias.name}")
        if module[-1] in self._by_name:
            return self._own_global(module[-1], alias.name)
        if module[0] in _API_MODULES and module != ["vtk", "util", "numpy_support"]:
            return self._member(Value(MODULE, node.module or ""), alias.name)
        return _PLAIN

    def _own_global(self, module: str, name: str) -> Value | None:
        source = self._by_name[module]
        bindings = source.scopes[source.tree].get(name, [])
        return self._first([self._infer_binding(source, binding, name) for binding in bindings])

    def _infer_call(self, source: Source, node: ast.Call) -> Value | None:
        match node.func, node.args:
            case ast.Name(id="super"), []:
                owner = source.enclosing_class(node)
                return None if owner is None else Value(SUPER, owner.name, owner)
            case ast.Name(id="getattr"), [receiver, ast.Constant(value=str(name)), *_]:
                owner_value = self.infer(source, receiver)
                return None if owner_value is None else self._member(owner_value, name)
            case ast.Name(id="getattr"), _:
                return self._hint(source, ast.unparse(node))
            case ast.Name(id="next"), [ast.GeneratorExp(generators=[first, *_]), *_]:
                return self._infer_binding(source, (first.iter,), "")
        function = self.infer(source, node.func)
        if function is None:
            return None
        return self._hint(source, ast.unparse(node)) or self._result(source, function, node)

    def _result(self, source: Source, function: Value, node: ast.Call) -> Value | None:
        match function.kind:
            case "plain":
                return _PLAIN
            case "class":
                return Value(INSTANCE, function.name)
            case "python class":
                return Value(PYTHON_INSTANCE, function.name)
            case "own class":
                return Value(OWN_INSTANCE, function.name, function.node)
            case "own function":
                return self._returned(function.node)  # type: ignore[arg-type]
            case "function":
                hint = self.hints.results.get(function.name)
                return _PLAIN if hint is None else self._instance(hint)
            case "bound":
                return self._bound_result(source, function, node)
        return None

    def _bound_result(self, source: Source, function: Value, node: ast.Call) -> Value | None:
        index = _CLASS_ARGUMENT.get(function.name)
        if index is not None and len(node.args) > index:
            name = self._text(source, node.args[index])
            if name:
                return self._instance(name)
        if function.name == "AddNode" and node.args:
            return self.infer(source, node.args[0])
        assert function.owner is not None
        return self._member_type(function.owner, function.name)

    def _returned(self, function: ast.FunctionDef) -> Value | None:
        source = self._source_of[function]
        results = [node.value for node in _own_nodes(function) if isinstance(node, ast.Return) and node.value]
        return self._first([self.infer(source, result) for result in results]) if results else _PLAIN

    def _text(self, source: Source, node: ast.expr) -> str:
        """The text that a constant expression stands for, or an empty one."""
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.Name):
            for scope in source.enclosing(node):
                for binding in source.scopes[scope].get(node.id, []):
                    if isinstance(binding, ast.Constant):
                        return str(binding.value)
        return self.hints.objects.get(ast.unparse(node), "")

    # ---- members -------------------------------------------------------------------------------------------------

    def _member(self, owner: Value, name: str) -> Value | None:
        match owner.kind:
            case "plain":
                return _PLAIN
            case "module":
                return self._module_member(owner.name, name)
            case "ui":
                return Value(INSTANCE, self.widgets[name]) if name in self.widgets else None
            case "own instance" | "own class" | "super":
                return self._own_member(owner, name)
        return self._api_member(owner, name)

    def _api_member(self, owner: Value, name: str) -> Value | None:
        try:
            is_python = owner.kind not in (INSTANCE, CLASS)
            member = self.api.python.find(owner.name, name) if is_python else self.api.find(owner.name, name)
        except NotChecked:
            member = None
        if member is None:
            return Value(BOUND, name, owner=owner) if f"{owner.name}.{name}" in self.hints.results else None
        if member.kind == METHOD:
            return Value(BOUND, name, owner=owner)
        return self._member_type(owner, name) if member.kind == PROPERTY else _PLAIN

    def _member_type(self, owner: Value, name: str) -> Value | None:
        """The value that a method or a property returns."""
        for class_name in self._ancestry(owner.name):
            if (hint := self.hints.results.get(f"{class_name}.{name}")) is not None:
                return self._instance(hint)
        if owner.kind not in (INSTANCE, CLASS):
            member = self.api.python.find(owner.name, name)
            return None if member is not None and member.kind == PROPERTY else _PLAIN
        member = self.api.find(owner.name, name)
        return self._instance(member.returns) if member is not None else None

    def _ancestry(self, name: str) -> Iterator[str]:
        yield name
        if name in self.api.cpp:
            for base in self.api.cpp.get(name).bases:
                yield from self._ancestry(base)
        elif module := self.api.python.module(name.rpartition(".")[0]):
            found = module.classes.get(name.rpartition(".")[2])
            for base in found.bases if found else ():
                yield from self._ancestry(f"{module.name}.{base}")

    def _module_member(self, module: str, name: str) -> Value | None:
        if module.startswith("own:"):
            return self._own_global(module[4:], name)
        if module == "slicer" and name in self.hints.attributes:
            return self._instance(self.hints.attributes[name])
        if module == "slicer" and (name == "modules" or self.api.python.module(f"slicer.{name}") is not None):
            return Value(MODULE, f"slicer.{name}")
        if module == "slicer.modules":
            return self._instance(self.hints.attributes["modules."])
        found = self.api.python.module(module)
        if found is not None and name in found.functions:
            return Value(FUNCTION, f"{module}.{name}")
        if found is not None and name in found.classes:
            return Value(PYTHON_CLASS, f"{module}.{name}")
        if module in ("slicer", "qt", "ctk", "vtk") and self.api.has_class(name):
            return Value(CLASS, name)
        return None

    def _own_member(self, owner: Value, name: str) -> Value | None:
        node = owner.node
        assert isinstance(node, ast.ClassDef)
        for each in self._own_ancestry(node) if owner.kind != SUPER else ():
            source = self._source_of[each]
            if (hint := self._hint(source, f"{each.name}.{name}")) is not None:
                return hint
            for member in each.body:
                if isinstance(member, ast.FunctionDef) and member.name == name:
                    decorators = {ast.unparse(d) for d in member.decorator_list}
                    return self._returned(member) if "property" in decorators else Value(OWN_FUNCTION, name, member)
            if self._assigned(each, name):
                return self._first([self._infer_binding(source, value, "") for value in self._assigned(each, name)])
        base = self._api_base(owner)
        if base is None:
            return None
        return self._member(base, name)

    def _is_own(self, owner: Value, name: str) -> bool:
        assert isinstance(owner.node, ast.ClassDef)
        if owner.kind == SUPER:
            return False
        return any(
            self._assigned(each, name) or any(getattr(member, "name", None) == name for member in each.body)
            for each in self._own_ancestry(owner.node)
        )

    def _own_ancestry(self, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        yield node
        source = self._source_of[node]
        for base in node.bases:
            value = self.infer(source, base)
            if value is not None and value.kind == OWN_CLASS and isinstance(value.node, ast.ClassDef):
                yield from self._own_ancestry(value.node)

    def _assigned(self, node: ast.ClassDef, name: str) -> list[_Binding]:
        """The values that the class and its methods assign to an attribute."""
        return self._attributes.get(node, {}).get(name, [])

    @cached_property
    def _attributes(self) -> dict[ast.ClassDef, dict[str, list[_Binding]]]:
        found: dict[ast.ClassDef, dict[str, list[_Binding]]] = {}
        for source in self.sources:
            for scope, bindings in source.scopes.items():
                if isinstance(scope, ast.ClassDef):
                    attributes = found.setdefault(scope, {})
                    for name, values in bindings.items():
                        attributes.setdefault(name, []).extend(values)
                    for each in scope.body:
                        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                            attributes.setdefault(each.target.id, []).append(each)
            for node in ast.walk(source.tree):
                owner = source.enclosing_class(node)
                if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and owner is not None and node.value:
                    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                    for target in targets:
                        for name, value in _self_attributes(target, node.value):
                            found.setdefault(owner, {}).setdefault(name, []).append(value)
        return found

    def _api_base(self, owner: Value) -> Value | None:
        """The base of an own class that is a class of Slicer, as an instance."""
        assert isinstance(owner.node, ast.ClassDef)
        for each in self._own_ancestry(owner.node):
            source = self._source_of[each]
            for base in [*each.bases, *each.decorator_list]:
                value = self.infer(source, base)
                if value is not None and value.kind == CLASS:
                    return Value(INSTANCE, value.name)
                if value is not None and value.kind == PYTHON_CLASS:
                    return Value(PYTHON_INSTANCE, value.name, each)
                if value is not None and value.kind == FUNCTION:
                    return Value(PYTHON_INSTANCE, value.name)
        return None

    def api_bases(self, owner: Value) -> list[Value]:
        """All bases of an own class that are classes of Slicer, and the decorators from Slicer."""
        assert isinstance(owner.node, ast.ClassDef)
        values = [
            self.infer(self._source_of[each], base)
            for each in self._own_ancestry(owner.node)
            for base in [*each.bases, *each.decorator_list]
        ]
        return [value for value in values if value is not None and value.kind in (CLASS, PYTHON_CLASS, FUNCTION)]


def _argument(call: ast.Call, index: int, name: str) -> ast.expr | None:
    """The argument of a call for a parameter, or None."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    if index < len(call.args) and not any(isinstance(argument, ast.Starred) for argument in call.args):
        return call.args[index]
    return None


def _self_attributes(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, _Binding]]:
    if isinstance(target, ast.Tuple):
        values: Sequence[_Binding] = value.elts if isinstance(value, ast.Tuple) else [(value,)] * len(target.elts)
        for each, part in zip(target.elts, values, strict=False):
            if isinstance(each, ast.Attribute):
                yield each.attr, part
    elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        yield target.attr, value


def _parameters(scope: ast.FunctionDef | ast.Lambda) -> list[str]:
    arguments = scope.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [each.arg for each in every if each is not None]


def _arguments(call: ast.Call | None) -> tuple[int | None, tuple[str, ...]]:
    if call is None:
        return None, ()
    keywords = tuple(keyword.arg for keyword in call.keywords if keyword.arg)
    is_open = any(isinstance(argument, ast.Starred) for argument in call.args) or len(keywords) < len(call.keywords)
    return (None if is_open else len(call.args) + len(keywords)), keywords


_BUILTINS = set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__) | {"__file__", "__name__"}
