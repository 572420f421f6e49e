"""The tutorial's screenshot of the panel can be created, and shows a session."""

import panel_picture
import qt


def test_the_tutorials_screenshot(application, demo):
    picture = panel_picture.picture(demo)
    assert picture.width() > 2 * panel_picture.WIDTH
    assert picture.height() > 300
    colors = {qt.QColor(picture.pixelColor(x, 200)).rgb() for x in range(picture.width())}
    assert len(colors) > 10
