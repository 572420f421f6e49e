"""What the module is made of. Only the widget needs Qt; everything here works on MRML alone.

``packages`` comes first: it installs what the others need, and needs nothing of that itself.

A module imports only what stands above it:

``geometry``      world and voxel coordinates, slice views, strokes and outlines as masks
``labelmaps``     a segmentation's segments as arrays of a volume's voxels
``sparse``        masks that are mostly empty
``segments``      the session's masks in the scene, beside other segments; changes made by hand
``prompts``       prompts as marks in the scene
``sceneState``    what the scene keeps of a session
``work``          these together, for one segmentation on one volume
``status``        what happens, in words
``conversation``  requests that wait, are sent and answered; the connection; the image
``logic``         what the widget talks to
"""
