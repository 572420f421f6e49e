"""Slicer's window goes on while a large image travels and prompts are computed: frozen.py is the benchmark."""

import frozen
import pytest


@pytest.mark.timeout(600)  # 134 MB, and a network, on whatever processors there are
def test_nothing_is_frozen(application, demo, capfd):
    image, points = frozen.make_image()
    gaps, steps = frozen.through_the_panel(demo, image, points[:2])
    with capfd.disabled():
        print(f" gaps between beats due every {frozen.EVERY_MS} ms: {frozen.in_words(gaps)} ", end="")
    assert steps == ["AddPoint", "AddPoint", "SetMask"]
    # Each answer is waited for in Qt's own loop: who blocks it for as long as the server computes leaves a few.
    assert len(gaps) > 200
