"""The tutorial's picture of the panel can be made, and shows a session."""

import panel_picture
import qt


def test_the_tutorials_picture(application, demo):
    picture = panel_picture.picture(demo)
    assert picture.width() > 2 * panel_picture.WIDTH
    assert picture.height() > 300
    colours = {qt.QColor(picture.pixelColor(x, 200)).rgb() for x in range(picture.width())}
    assert len(colours) > 10
