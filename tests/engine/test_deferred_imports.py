"""Deferred imports, with real modules of the standard library in processes of their own."""

import subprocess
import sys
import textwrap

import pytest


def run(code: str) -> str:
    """Run code after an import of the function, and return what it prints."""
    start = "import sys\nfrom nninteractive_ws.engine.deferred_imports import defer_imports\n"
    done = subprocess.run(
        [sys.executable, "-c", start + textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("statement", "use", "expected"),
    [
        ("import colorsys", "colorsys.rgb_to_hsv(1, 1, 1)", "(0.0, 0.0, 1)"),
        ("import colorsys as c", "c.ONE_THIRD < 1", "True"),
        ("from colorsys import rgb_to_hsv", "rgb_to_hsv(1, 1, 1)", "(0.0, 0.0, 1)"),
        ("import wsgiref.headers", "wsgiref.headers.Headers([]).keys()", "[]"),
        ("from wsgiref import headers", "headers.Headers([]).keys()", "[]"),
        ("from wsgiref.headers import Headers", "Headers([]).keys()", "[]"),
    ],
)
def test_a_deferred_module_is_imported_when_it_is_used(statement: str, use: str, expected: str) -> None:
    code = f"""
        names = ("colorsys", "wsgiref")
        with defer_imports(*names):
            {statement}
        print(any(name in sys.modules for name in names), {use}, any(name in sys.modules for name in names))
    """
    assert run(code) == f"False {expected} True"


def test_a_class_of_a_deferred_module_can_be_subclassed_and_tested_for() -> None:
    code = """
        with defer_imports("fractions"):
            from fractions import Fraction
        class Half(Fraction): pass
        import fractions
        print(isinstance(Half(1, 2), Fraction), isinstance(fractions.Fraction(1), Fraction), isinstance(1, Fraction))
        print(issubclass(Half, fractions.Fraction))
    """
    assert run(code) == "True True False\nTrue"


def test_an_instance_check_does_not_import_the_module() -> None:
    code = """
        with defer_imports("fractions"):
            from fractions import Fraction
        print(isinstance(1, Fraction), "fractions" in sys.modules)
    """
    assert run(code) == "False False"


def test_a_module_that_is_used_at_once_is_imported_at_once() -> None:
    code = """
        with defer_imports("fractions", "wsgiref", "colorsys"):
            from fractions import Fraction
            half = Fraction(1, 2)
            import fractions, wsgiref.headers, colorsys
            headers = wsgiref.headers.Headers([])
        print(half, fractions.Fraction is type(half), "colorsys" in sys.modules)
        import wsgiref.headers
        print(type(headers) is wsgiref.headers.Headers)
    """
    assert run(code) == "1/2 True False\nTrue"


def test_an_imported_module_stays_as_it_is() -> None:
    code = """
        import fractions
        before = fractions
        with defer_imports("fractions"):
            import fractions
        print(fractions is before, sys.modules["fractions"] is before)
    """
    assert run(code) == "True True"


def test_nothing_is_left_behind() -> None:
    code = """
        before = list(sys.meta_path)
        import wsgiref
        try:
            with defer_imports("wsgiref.headers", "colorsys"):
                import wsgiref.headers, colorsys
                raise ValueError
        except ValueError:
            pass
        print(sys.meta_path == before, [n for n in sys.modules if n == "wsgiref.headers"], hasattr(wsgiref, "headers"))
        import wsgiref.headers
        print(wsgiref.headers.Headers([("name", "a")])["name"])
    """
    assert run(code) == "True [] False\na"


def test_a_missing_module_is_missed_when_it_is_used() -> None:
    code = """
        with defer_imports("no_such_module"):
            import no_such_module
        try:
            no_such_module.name
        except ModuleNotFoundError as e:
            print(e.name)
    """
    assert run(code) == "no_such_module"
