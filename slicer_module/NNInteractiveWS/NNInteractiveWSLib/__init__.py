"""What the module is made of.

``packages`` comes first: it installs what the others need, and needs nothing of that itself. ``installPage`` asks for
that, ``sampleData`` offers a volume, ``selfTest`` is the test for the application; they need nothing more either.

A module imports only what stands above it. Up to the logic they work on MRML alone, without Qt:

``geometry``       world and voxel coordinates, slice views, strokes and outlines as masks
``labelmaps``      a segmentation's segments as arrays of a volume's voxels
``sparse``         masks that are mostly empty
``segments``       the session's masks in the scene, beside other segments; changes made by hand
``prompts``        prompts as marks in the scene
``sceneState``     what the scene keeps of a session
``work``           these together, for one segmentation on one volume
``status``         what happens, in words
``conversation``   requests that wait, are sent and answered; the connection; the image
``logic``          what the widget talks to

and these are the panel:

``views``          the mouse in the views
``shortcuts``      keys that are alive while the module is open
``editorHistory``  the Segment Editor's undo beside the session's
``serverForm``     address, token, certificate, and the test of a connection, for which it runs ``doctor``
``widget``         the rest, and these together
"""
