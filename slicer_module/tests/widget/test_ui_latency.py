"""Slicer's window stays responsive during the upload of a large image and during predictions, as in ui_latency.py."""

import pytest
import ui_latency


@pytest.mark.timeout(600)  # uploads 134 MB and runs a network, possibly on slow CPUs
def test_the_window_stays_responsive(application, demo, capfd):
    image, points = ui_latency.make_image()
    gaps, steps = ui_latency.through_the_panel(demo, image, points[:2])
    with capfd.disabled():
        print(f" gaps between ticks every {ui_latency.EVERY_MS} ms: {ui_latency.summary(gaps)} ", end="")
    assert steps == ["AddPoint", "AddPoint", "SetMask"]
    # The event loop runs while the server predicts. If the main thread blocked meanwhile, there would be few ticks.
    assert len(gaps) > 200
