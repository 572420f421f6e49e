"""The interface of Slicer for Python modules: classes of source trees, of the package vtk, and of a PythonQt host."""

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import importlib
from pathlib import Path
import re
import sys
from types import MappingProxyType, ModuleType
from typing import Any

from tools.cpp_declarations import CLASS, CONSTANT, METHOD, PROPERTY, SIGNAL, UNWRAPPED, CppSources, Member

_RETURN = re.compile(r"\)\s*->\s*(?:PythonQt\.\w+\.)?(\w+)")


class NotChecked(Exception):
    """A class is in none of the sources. ``str()``: the reason."""


class Api:
    """The classes and Python modules of source trees.

    ``vtk``, ``slicer_core`` and ``qt``: modules, or None. ``stand_ins``: for a class that is in none of them, a base
    whose members are checked instead.
    """

    def __init__(
        self,
        trees: Sequence[Path],
        vtk: ModuleType | None = None,
        slicer_core: ModuleType | None = None,
        qt: ModuleType | None = None,
        stand_ins: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.cpp = CppSources(trees)
        self.python = PythonSources(trees)
        self._stand_ins = stand_ins
        self._modules = {"vtk": vtk, "slicer-core": slicer_core, "qt": qt}

    def has_class(self, name: str) -> bool:
        return name in self.cpp or any(hasattr(module, name) for module in self._modules.values() if module)

    def find(self, class_name: str, name: str) -> Member | None:
        """Find a member of a class or of its bases. Raise NotChecked if a base is in none of the sources."""
        if class_name not in self.cpp:
            return self._find_external(class_name, name)
        declared = self.cpp.get(class_name)
        own = declared.members.get(name)
        decorated = self.cpp.decorators(class_name).get(name)
        if own is None and decorated is None and name == "New" and class_name.startswith("vtk"):
            return Member(name, METHOD, declared.place, ((0, 0),), class_name)
        if decorated is not None and (own is None or own.kind == UNWRAPPED):
            return decorated
        if own is not None and own.kind != UNWRAPPED:
            return own
        reason = None
        for base in declared.bases:
            try:
                inherited = self.find(base, name)
            except NotChecked as e:
                reason = e
                continue
            if inherited is not None and inherited.kind != UNWRAPPED:
                return inherited
            own = own or inherited
        if own is None and reason is not None:
            raise reason
        return own

    def constructor(self, class_name: str) -> Member | None:
        """The constructor of a class, as a method. None if its arguments are unknown."""
        if class_name.startswith("vtk"):
            return Member(class_name, METHOD, self._place(class_name), ((0, 0),), class_name)
        if class_name in self.cpp:
            declared = self.cpp.get(class_name)
            return Member(class_name, METHOD, declared.place, declared.constructors or ((0, 0),), class_name)
        return None

    def in_slicer_core(self, class_name: str, name: str) -> bool | None:
        """Whether the class in the package slicer-core has a member. None if it has no such class."""
        wrapped = getattr(self._modules["slicer-core"], class_name, None)
        return None if wrapped is None else hasattr(wrapped, name)

    def in_package(self, module: str, name: str) -> Member | None:
        """A name in ``vtk`` or ``qt``, or in one of their modules. Raise NotChecked if that is not installed."""
        package = self._modules[module.partition(".")[0]]
        if package is None:
            raise NotChecked(f"{module} is not installed")
        for part in module.split(".")[1:]:
            package = importlib.import_module(f"{package.__name__}.{part}")
        found = getattr(package, name, None)
        if found is None:
            return None
        kind = CLASS if isinstance(found, type) else METHOD if callable(found) else CONSTANT
        return Member(name, kind, f"package {module}" if module.startswith("vtk") else "PythonQt")

    def _place(self, class_name: str) -> str:
        return self.cpp.get(class_name).place if class_name in self.cpp else "package vtk"

    def _find_external(self, class_name: str, name: str) -> Member | None:
        class_name = self._stand_ins.get(class_name, class_name)
        key, what = ("qt", "PythonQt") if class_name.startswith("Q") else ("vtk", "the package vtk")
        module = self._modules[key]
        if module is None:
            raise NotChecked(f"{class_name} is not in the source trees, and {what} is not installed")
        wrapped = getattr(module, class_name, None)
        if wrapped is None:
            raise NotChecked(f"{class_name} is neither in the source trees nor in {what}")
        if not hasattr(wrapped, name):
            return None
        found = getattr(wrapped, name)
        return _vtk_member(name, found) if key == "vtk" else _qt_member(wrapped, name, found)


# ---- Python packages with classes written in C++ -----------------------------------------------------------------


def _vtk_member(name: str, found: Any) -> Member:
    if isinstance(found, type):
        return Member(name, CLASS, "package vtk")
    if not callable(found):
        return Member(name, CONSTANT, "package vtk")
    document = found.__doc__ or ""
    signatures = list(_signatures(name, document)) or [""]
    returns = _RETURN.search(document)
    kind = returns[1] if returns and returns[1].startswith("vtk") else ""
    return Member(name, METHOD, "package vtk", tuple(_signature_arity(each) for each in signatures), kind)


def _signatures(name: str, document: str) -> Iterator[str]:
    """The arguments of each overload in the documentation that VTK generates, before the C++ declaration."""
    for match in re.finditer(rf"^{name}\((?=self|\)|[^\n]*:)", document, re.M):
        end, depth = match.end(), 1
        while depth and end < len(document):
            depth += (document[end] in "([") - (document[end] in ")]")
            end += 1
        yield document[match.end() : end - 1]


def _signature_arity(signature: str) -> tuple[int, int | None]:
    while (flat := re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "", signature)) != signature:
        signature = flat
    arguments = [argument.strip() for argument in flat.split(",") if argument.strip() not in ("", "self")]
    return sum("=" not in argument for argument in arguments), len(arguments)


def _qt_member(wrapped: Any, name: str, found: Any) -> Member:
    """A member of a class of PythonQt. Reading a property of the class gives None or an object without address."""
    shown = repr(found)
    if found is None or "0x(nil)" in shown:
        meta = _meta_object(wrapped)
        index = -1 if meta is None else meta.indexOfProperty(name)
        writable = index < 0 or meta.property(index).isWritable()
        return Member(name, PROPERTY, "PythonQt", returns=_qt_class(type(found).__name__), writable=writable)
    if "qt signal" in shown:
        return Member(name, SIGNAL, "PythonQt", signatures=tuple(_qt_signals(wrapped, name)))
    if "qt slot" not in shown:
        return Member(name, CONSTANT, "PythonQt")
    overloads = (found.__doc__ or "").splitlines()
    returns = [_qt_class(match[1]) for line in overloads if (match := _RETURN.search(line))]
    return Member(name, METHOD, "PythonQt", tuple(_slot_arities(overloads)) or ((0, None),), next(iter(returns), ""))


def _slot_arities(overloads: Sequence[str]) -> Iterator[tuple[int, int | None]]:
    for line in overloads:
        if match := re.match(r"X\.\w+\((.*?)\)", line):
            # The documentation does not tell which arguments have defaults.
            yield 0, len([part for part in match[1].split(",") if part.strip()])


def _qt_class(name: str) -> str:
    return name if name.startswith("Q") else ""


def _meta_object(wrapped: Any) -> Any:
    """The QMetaObject of a class, for which PythonQt needs an instance."""
    try:
        return wrapped().metaObject()
    except (AttributeError, TypeError, ValueError):  # without parent, or not a QObject
        return None


def _qt_signals(wrapped: Any, name: str) -> Iterator[str]:
    meta = _meta_object(wrapped)
    if meta is not None:
        for index in range(meta.methodCount()):
            signature = str(meta.method(index).methodSignature().data(), "utf-8", "replace")
            if signature.partition("(")[0] == name:
                yield signature


# ---- Python sources ----------------------------------------------------------------------------------------------


@dataclass
class PythonClass:
    """A class in a Python file. ``attributes``: those that its methods assign to ``self``."""

    name: str
    place: str
    bases: tuple[str, ...]
    methods: dict[str, Member] = field(default_factory=dict)
    attributes: set[str] = field(default_factory=set)


@dataclass
class PythonModule:
    """The functions and classes of a Python module, including those that it imports from other modules of Slicer."""

    name: str
    functions: dict[str, Member] = field(default_factory=dict)
    keywords: dict[str, set[str] | None] = field(default_factory=dict)
    classes: dict[str, PythonClass] = field(default_factory=dict)


class PythonSources:
    """Python modules of the source trees: the package ``slicer``, and Slicer's scripted modules."""

    def __init__(self, trees: Sequence[Path]) -> None:
        self._trees = trees
        self._modules: dict[str, PythonModule | None] = {}

    def module(self, name: str) -> PythonModule | None:
        """Return a module by its name, such as ``slicer.util`` or ``SampleData``; None if there is none."""
        if name not in self._modules:
            self._modules[name] = None
            paths = list(self._paths(name))
            if paths:
                self._modules[name] = found = PythonModule(name)
                for tree, path in paths:
                    _read_python(found, path, str(path.relative_to(tree)))
        return self._modules[name]

    def find(self, class_name: str, name: str) -> Member | None:
        """Find a member of a class or of its bases. ``class_name``: with its module."""
        if (added := self.added(class_name, name)) is not None:
            return added
        module, _dot, short = class_name.rpartition(".")
        found = self.module(module)
        declared = found.classes.get(short) if found is not None else None
        if declared is None:
            return _standard_member(class_name, name)
        if name in declared.methods:
            return declared.methods[name]
        if name in declared.attributes:
            return Member(name, PROPERTY, declared.place, writable=True)
        inherited = (self.find(base if "." in base else f"{module}.{base}", name) for base in declared.bases)
        return next((member for member in inherited if member is not None), None)

    def added(self, decorator: str, name: str) -> Member | None:
        """A function that a class decorator adds to a class by calling ``setattr``."""
        module, _dot, function = decorator.rpartition(".")
        found = self.module(module)
        if found is None or function not in found.functions:
            return None
        added = self.module(f"{module}:added")
        return None if added is None else added.functions.get(name)

    def _paths(self, name: str) -> Iterator[tuple[Path, Path]]:
        dotted = name.removesuffix(":added").split(".")
        for tree in self._trees:
            if dotted[0] == "slicer":
                path = tree / "Base" / "Python" / Path(*dotted)
                candidates = [path.with_suffix(".py"), *sorted(path.glob("*.py"))]
            else:
                candidates = sorted(tree.glob(f"Modules/Scripted/*/{'/'.join(dotted)}.py"))
            yield from ((tree, path) for path in candidates if path.is_file())


def _standard_member(class_name: str, name: str) -> Member | None:
    """A member of a class of Python's standard library."""
    module, _dot, short = class_name.rpartition(".")
    if module not in sys.stdlib_module_names:
        return None
    found = getattr(getattr(importlib.import_module(module), short), name, None)
    return None if found is None else Member(name, METHOD, f"Python's {module}")


def _read_python(module: PythonModule, path: Path, shown: str) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    if module.name.endswith(":added"):
        for name, value in _set_attributes(tree):
            function = functions.get(value.id) if isinstance(value, ast.Name) else value
            if isinstance(function, ast.FunctionDef | ast.Lambda):
                module.functions[name] = _python_member(name, function, shown, bound=True)
                module.keywords[name] = _keywords(function)
        return
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            module.functions[node.name] = _python_member(node.name, node, shown)
            module.keywords[node.name] = _keywords(node)
        elif isinstance(node, ast.ClassDef):
            module.classes[node.name] = found = _python_class(node, shown)
            for method in node.body:
                if isinstance(method, ast.FunctionDef):
                    module.keywords[f"{found.name}.{method.name}"] = _keywords(method)


def _set_attributes(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and "setattr" in node.func.id.lower():
            match node.args:
                case [_, ast.Constant(value=str(name)), value]:
                    yield name, value


def _python_class(node: ast.ClassDef, shown: str) -> PythonClass:
    bases = tuple(ast.unparse(base) for base in node.bases)
    found = PythonClass(node.name, f"{shown}:{node.lineno}", bases)
    for method in node.body:
        if isinstance(method, ast.FunctionDef):
            is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in method.decorator_list)
            found.methods[method.name] = _python_member(method.name, method, shown, bound=not is_static)
        elif isinstance(method, ast.Assign):
            found.attributes.update(target.id for target in method.targets if isinstance(target, ast.Name))
    for attribute in ast.walk(node):
        if isinstance(attribute, ast.Attribute) and isinstance(attribute.ctx, ast.Store):
            found.attributes.add(attribute.attr)
    return found


def _python_member(name: str, node: ast.FunctionDef | ast.Lambda, shown: str, bound: bool = False) -> Member:
    positional = [*node.args.posonlyargs, *node.args.args][1 if bound else 0 :]
    most = None if node.args.vararg or node.args.kwarg else len(positional) + len(node.args.kwonlyargs)
    least = max(len(positional) - len(node.args.defaults), 0)
    return Member(name, METHOD, f"{shown}:{node.lineno}", ((least, most),))


def _keywords(node: ast.FunctionDef | ast.Lambda) -> set[str] | None:
    """The keyword arguments that a function accepts. None if it accepts any."""
    return None if node.args.kwarg else {each.arg for each in (*node.args.args, *node.args.kwonlyargs)}
