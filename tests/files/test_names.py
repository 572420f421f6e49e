"""File names that are valid on every system and unique."""

import re

from hypothesis import given
from hypothesis import strategies as st
import pytest

from nninteractive_ws.files.names import folded, safe_name

ODD = st.text(st.one_of(st.sampled_from('CONconAUX1.: /\\?*"<>| \x00\n¹'), st.characters()), max_size=300)


@pytest.mark.parametrize(
    "name", ["ct1", "Fall 7", "größe", "腫瘍", ".hidden", "a.b.c", "console", "com10", "lpt", "x" * 200]
)
def test_a_valid_name_is_unchanged(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("CON", "CON_-"), ("con", "con_-"), ("Aux.x", "Aux_.x-"), ("nul ", "nul_-"), ("nul .x", "nul_.x-"),
        ("COM1", "COM1_-"),
        ("lpt¹", "lpt¹_-"), ("CONIN$", "CONIN$_-"), ("prn.tar.gz", "prn_.tar.gz-"), ("a.", "a_-"), ("a  ", "a_-"),
        ("...", "_-"), ("a:b", "a_b-"), ("a\\b", "a_b-"), ('<>"|?*', "______-"), ("a\nb\x1b", "a_b_-"),
        ("\udc80", "_-"),
        ("x" * 250, "xxx"), ("腫" * 100, "腫腫"), ("", "_-"),
    ],
)  # fmt: skip
def test_an_invalid_name_is_changed(name: str, begins: str) -> None:
    safe = safe_name(name)
    assert safe.startswith(begins)
    assert re.fullmatch(r".*-[0-9a-f]{12}", safe)


@given(ODD)
def test_every_result_is_valid_on_windows(name: str) -> None:
    for ending in ("", ".seg.nrrd", ".nii.gz", ".dcm"):
        safe = safe_name(name) + ending
        assert not re.search(r'[<>:"/\\|?*\x00-\x1f]', safe)
        assert not safe.endswith((".", " "))
        assert not re.fullmatch(r"(CON|PRN|AUX|NUL|(COM|LPT)[0-9¹²³])", safe.split(".")[0].strip().upper())
        assert 0 < len(f".partial-{safe}".encode()) <= 255


@given(ODD, ODD)
def test_different_names_stay_different(a: str, b: str) -> None:
    assert (safe_name(a) == safe_name(b)) == (a == b)


def test_names_equal_on_other_systems() -> None:
    assert folded("CT1") == folded("ct1")
    assert folded("größe") == folded("gro\u0308ße")
    assert folded("ct1") != folded("ct2")
