"""Declarations of the classes in C++ headers, read by regular expressions, as far as Python can reach them.

Slicer wraps its VTK classes with VTK's wrappers, which offer every public method. It offers its QObject classes through
PythonQt, in which only properties, signals, slots, methods marked Q_INVOKABLE and registered enums exist.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
import re

#: Least and greatest number of arguments. The second one is None if it is unlimited.
Arity = tuple[int, int | None]

METHOD, PROPERTY, SIGNAL, CONSTANT, CLASS = "method", "property", "signal", "constant", "class"
#: A public method of a QObject that PythonQt does not offer.
UNWRAPPED = "C++ only"

_IGNORED_FOLDERS = {"Testing", "Tests", "Templates"}
_CLASS_HEAD = re.compile(r"\bclass\s+(?:\w+_EXPORT\s+|[A-Z][A-Z0-9_]*\s+)?(\w+)\s*(?:final\s*)?(?::([^:;{][^;{]*))?\{")
_ACCESS = re.compile(r"\b(public|protected|private|signals|Q_SIGNALS)\s*(slots|Q_SLOTS)?\s*:(?!:)")
_PROPERTY_MACRO = re.compile(r"\bQ_PROPERTY\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)")
_VTK_MACRO = re.compile(r"\bvtk(\w+)Macro\w*\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)\s*;?")
_ENUM_MACRO = re.compile(r"\bQ_(?:ENUM|ENUMS|FLAG|FLAGS)\s*\(([^()]*)\)")
_FLAGS_MACRO = re.compile(r"\bQ_DECLARE_FLAGS\s*\(\s*(\w+)\s*,\s*(\w+)\s*\)")
_OTHER_MACRO = re.compile(r"^\s*(?!Q_INVOKABLE|QT_DEPRECATED)[A-Z][A-Z0-9_]{3,}\b(?:\s*\([^()]*\))?")
_ENUM = re.compile(r"\benum\s+(class\s+|struct\s+)?(?:[A-Z][A-Z0-9_]*\s+)?(\w+)?\s*(?::\s*[\w:]+\s*)?\{([^{}]*)\}")
_METHOD = re.compile(r"(operator\W+|~?\w+)\s*\(")
_QUALIFIERS = re.compile(r"\b(virtual|static|inline|explicit|constexpr|const|Q_INVOKABLE|VTK_\w+|\[\[.*?\]\])\b")
_VECTOR = re.compile(r"Vector(\d)")


@dataclass(frozen=True)
class Member:
    """A member of a class.

    ``arities``: of a method, one for each declaration. ``returns``: class of the object that a call, or reading a
    property, returns; empty for any other type. ``signatures``: of a signal, normalized as Qt does it.
    """

    name: str
    kind: str
    place: str
    arities: tuple[Arity, ...] = ()
    returns: str = ""
    writable: bool = False
    signatures: tuple[str, ...] = ()


@dataclass
class CppClass:
    """A class, its bases and its own members."""

    name: str
    bases: tuple[str, ...]
    place: str
    is_qobject: bool = False
    members: dict[str, Member] = field(default_factory=dict)
    constructors: tuple[Arity, ...] = ()


class CppSources:
    """The classes of all headers in some source trees. A class is parsed when it is needed."""

    def __init__(self, trees: Sequence[Path]) -> None:
        self._files: dict[str, tuple[Path, Path]] = {}
        self._classes: dict[str, CppClass] = {}
        self._decorators: dict[str, dict[str, Member]] = {}
        for tree in trees:
            for path in sorted(tree.rglob("*.h")):
                if not _IGNORED_FOLDERS & set(path.relative_to(tree).parts):
                    self._index(tree, path)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def get(self, name: str) -> CppClass:
        """Return a class. Raise KeyError if no header declares it."""
        if name not in self._classes:
            tree, path = self._files[name]
            self._classes.update(
                (found.name, found) for found in parse_header(_read(path), str(path.relative_to(tree)))
            )
        return self._classes[name]

    def decorators(self, name: str) -> dict[str, Member]:
        """Members that a PythonQt decorator adds to a class."""
        return self._decorators.get(name, {})

    def _index(self, tree: Path, path: Path) -> None:
        text = _read(path)
        for match in _CLASS_HEAD.finditer(without_comments(text)):
            self._files.setdefault(match[1], (tree, path))
        if path.name.endswith("PythonQtDecorators.h"):
            for found in parse_header(text, str(path.relative_to(tree))):
                self._index_decorators(found, text)

    def _index_decorators(self, decorator: CppClass, text: str) -> None:
        for member in decorator.members.values():
            if member.name.startswith("static_"):
                _static, target, name = member.name.split("_", 2)
                arities = member.arities
            else:
                match = re.search(rf"\b{member.name}\s*\(\s*(?:const\s+)?(\w+)\s*\*", text)
                if match is None:
                    continue
                target, name = match[1], member.name
                arities = tuple((low - 1, None if high is None else high - 1) for low, high in member.arities)
            added = Member(name, METHOD, member.place, arities, member.returns)
            self._decorators.setdefault(target, {})[name] = added


def parse_header(text: str, path: str) -> Iterator[CppClass]:
    """Yield the classes of a header."""
    text = without_comments(text)
    for match in _CLASS_HEAD.finditer(text):
        end = _closing(text, match.end() - 1)
        body = text[match.end() : end]
        line = text.count("\n", 0, match.start()) + 1
        bases = tuple(_base_names(match[2] or ""))
        found = CppClass(match[1], bases, f"{path}:{line}", "Q_OBJECT" in body)
        _Body(found, body, path, text.count("\n", 0, match.end()) + 1).parse()
        yield found


def without_comments(text: str) -> str:
    """Replace comments, the contents of strings and preprocessor lines by blanks, and keep all line breaks."""
    pattern = re.compile(
        r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.S | re.M
    )

    def blank(match: re.Match[str]) -> str:
        quote = match[0][0] if match[0][0] in "\"'" else ""
        return quote + re.sub(r"[^\n]", " ", match[0][len(quote) : len(match[0]) - len(quote)]) + quote

    return pattern.sub(blank, text)


class _Body:
    """Parser of the body of a class."""

    def __init__(self, target: CppClass, body: str, path: str, first_line: int) -> None:
        self._class, self._body, self._path, self._first_line = target, body, path, first_line

    def parse(self) -> None:
        enums = self._take_enums()
        flat = _flattened(self._body)
        for match in _PROPERTY_MACRO.finditer(flat):
            self._add_property(match[1], match.start())
        flat = _PROPERTY_MACRO.sub(_blank, flat)
        registered = {name.split("::")[-1] for match in _ENUM_MACRO.finditer(flat) for name in match[1].split()}
        registered |= {match[2] for match in _FLAGS_MACRO.finditer(flat) if match[1] in registered}
        flat = _ENUM_MACRO.sub(_blank, flat)
        sections = list(self._sections(flat))
        for start, end, access, _slots in sections:
            if access == "public" and not self._class.is_qobject:
                self._add_macros(flat, start, end)
        flat = _VTK_MACRO.sub(_blank, flat)
        for start, end, access, slots in sections:
            for begin, statement in _statements(flat, start, end):
                self._add_statement(begin, statement, access, slots)
        self._add_enums(enums, sections, registered)

    def _place(self, position: int) -> str:
        return f"{self._path}:{self._first_line + self._body.count(chr(10), 0, position)}"

    def _add(self, member: Member) -> None:
        """Add a member. A property hides a method with its name, as PythonQt finds it first. Overloads are merged."""
        before = self._class.members.get(member.name)
        if before is None or before.kind == UNWRAPPED:
            self._class.members[member.name] = member
        elif before.kind == member.kind != PROPERTY:
            arities = (*before.arities, *member.arities)
            signatures = (*before.signatures, *member.signatures)
            self._class.members[member.name] = Member(
                member.name, member.kind, before.place, arities, before.returns or member.returns, False, signatures
            )

    def _sections(self, flat: str) -> Iterator[tuple[int, int, str, bool]]:
        start, access, slots = 0, "private", False
        for match in _ACCESS.finditer(flat):
            yield start, match.start(), access, slots
            access, slots, start = match[1], match[2] is not None, match.end()
            access = "signals" if access == "Q_SIGNALS" else access
        yield start, len(flat), access, slots

    def _take_enums(self) -> list[tuple[int, bool, str, list[str]]]:
        """Blank the enums out of the body, and return their positions, whether they are scoped, and their names."""
        found = []
        for match in _ENUM.finditer(self._body):
            names = [re.split(r"[=\s]", entry.strip())[0] for entry in match[3].split(",")]
            found.append((match.start(), match[1] is not None, match[2] or "", [name for name in names if name]))
        self._body = _ENUM.sub(_blank, self._body)
        return found

    def _add_enums(
        self,
        enums: Sequence[tuple[int, bool, str, list[str]]],
        sections: Sequence[tuple[int, int, str, bool]],
        registered: set[str],
    ) -> None:
        for position, scoped, name, values in enums:
            access = next(access for start, end, access, _slots in sections if start <= position <= end)
            if access != "public" or (self._class.is_qobject and name not in registered):
                continue
            for value in [name] if scoped else [*values, *([name] if name else [])]:
                self._add(Member(value, CONSTANT, self._place(position)))

    def _add_property(self, declaration: str, position: int) -> None:
        head, *rest = re.split(r"\b(READ|WRITE|NOTIFY|MEMBER|RESET|DESIGNABLE|STORED|USER|CONSTANT)\b", declaration)
        kind, name = re.fullmatch(r"(.*?)(\w+)", head.strip(), re.S).groups()  # type: ignore[union-attr]
        writable = "WRITE" in rest or "MEMBER" in rest
        self._add(Member(name, PROPERTY, self._place(position), returns=_class_of(kind), writable=writable))

    def _add_macros(self, flat: str, start: int, end: int) -> None:
        for match in _VTK_MACRO.finditer(flat, start, end):
            arguments = [argument.strip() for argument in match[2].split(",")]
            returned = _class_of(f"{arguments[1]}*") if "Object" in match[1] and len(arguments) > 1 else ""
            for name, arity in _macro_methods(match[1], arguments[0]):
                returns = returned if name.startswith("Get") else ""
                self._add(Member(name, METHOD, self._place(match.start()), (arity,), returns))

    def _add_statement(self, begin: int, statement: str, access: str, slots: bool) -> None:
        while (stripped := _OTHER_MACRO.sub(_blank, statement)) != statement:
            statement = stripped
        match = _METHOD.search(statement)
        if match is None or statement.lstrip().startswith(("friend", "typedef", "using", "template")):
            return
        name, before = match[1], statement[: match.start()]
        inside = statement[match.end() : _closing(statement, match.end() - 1)]
        arguments = [argument for argument in _split(inside) if argument not in ("", "void")]
        if name == self._class.name:
            if access == "public":
                self._class.constructors += (_arity(arguments),)
            return
        kind = self._kind(access, slots, "Q_INVOKABLE" in before)
        if kind and before.strip():
            place = self._place(begin + match.start())
            returns = _class_of(before)
            arity = _arity(arguments)
            signatures = tuple(_signatures(name, arguments, arity)) if kind == SIGNAL else ()
            self._add(Member(name, kind, place, (arity,), returns, False, signatures))

    def _kind(self, access: str, slots: bool, invocable: bool) -> str:
        if access == "signals":
            return SIGNAL
        if access != "public":
            return ""
        return UNWRAPPED if self._class.is_qobject and not slots and not invocable else METHOD


def _macro_methods(macro: str, name: str) -> Iterator[tuple[str, Arity]]:
    """The methods that one of VTK's macros declares. ``macro``: its name without vtk and Macro."""
    vector = _VECTOR.search(macro)
    sizes = [(1, 1), (int(vector[1]), int(vector[1]))] if vector else [(1, 1)]
    if macro.startswith("Get"):
        yield f"Get{name}", (0, 0)
        if vector:
            yield from ((f"Get{name}", size) for size in sizes)
    elif macro.startswith("Set"):
        yield from ((f"Set{name}", size) for size in sizes)
        if macro == "SetClamp":
            yield f"Get{name}MinValue", (0, 0)
            yield f"Get{name}MaxValue", (0, 0)
    elif macro.startswith("Boolean"):
        yield f"{name}On", (0, 0)
        yield f"{name}Off", (0, 0)


def _signatures(name: str, arguments: Sequence[str], arity: Arity) -> Iterator[str]:
    """The signatures of a signal: one for each number of arguments that it can be declared with."""
    for number in range(len(arguments), arity[0] - 1, -1):
        yield f"{name}({','.join(map(normalized_type, arguments[:number]))})"


def normalized_type(argument: str) -> str:
    """The type of an argument as in a normalized signature of Qt: without name, and without const and reference."""
    argument = re.split(r"=(?!=)", argument)[0]
    argument = re.sub(r"\bconst\b\s*|\s*&", " ", argument).strip()
    match = re.fullmatch(r"((?:unsigned\s+|long\s+)?[\w:]+(?:<.*>)?\s*\**)\s*(\w+)?", argument, re.S)
    kind = match[1] if match else argument
    return re.sub(r"\s*([*<>,])\s*", r"\1", kind).strip()


def _arity(arguments: Sequence[str]) -> Arity:
    if any(argument.startswith("...") for argument in arguments):
        return len(arguments) - 1, None
    return sum("=" not in argument for argument in arguments), len(arguments)


def _class_of(kind: str) -> str:
    """The class that a C++ type refers to, or an empty text for a basic type or a container."""
    kind = _QUALIFIERS.sub(" ", kind)
    smart = re.search(r"\bvtk(?:SmartPointer|WeakPointer)\s*<\s*(\w+)\s*>", kind)
    if smart:
        return smart[1]
    match = re.fullmatch(r"\s*(?:class\s+)?((?:vtk|q|Q|ctk)\w+)\s*[*&]?\s*", kind)
    return match[1] if match and match[1] not in _VALUES else ""


#: Types that become plain Python values.
_VALUES = {
    "QString",
    "QStringList",
    "QVariant",
    "QVariantMap",
    "QByteArray",
    "vtkIdType",
    "vtkTypeBool",
    "vtkMTimeType",
}


def _base_names(text: str) -> Iterator[str]:
    for part in _split(text):
        words = [word for word in re.findall(r"[\w:]+", part.split("<")[0]) if word not in _BASE_KEYWORDS]
        if words:
            yield words[-1]


_BASE_KEYWORDS = {"public", "protected", "private", "virtual"}


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "(<[{") - (character in ")>]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _statements(flat: str, start: int, end: int) -> Iterator[tuple[int, str]]:
    for match in re.compile(r"[^;]+").finditer(flat, start, end):
        if match[0].strip():
            yield match.start(), match[0]


def _flattened(body: str) -> str:
    """Replace every block in braces by a semicolon and blanks."""
    out, position = "", 0
    while (opening := body.find("{", position)) >= 0:
        end = _closing(body, opening)
        out += body[position:opening] + ";" + re.sub(r"[^\n]", " ", body[opening + 1 : end + 1])
        position = end + 1
    return out + body[position:]


def _closing(text: str, opening: int) -> int:
    """The position of the bracket that closes the one at ``opening``, or the end of the text."""
    left, depth = text[opening], 0
    right = {"{": "}", "(": ")"}[left]
    for match in re.compile(rf"[{re.escape(left + right)}]").finditer(text, opening):
        depth += 1 if match[0] == left else -1
        if depth == 0:
            return match.start()
    return len(text)


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
