"""Parts of the module.

Four of them run without the Python packages that the others need. ``packages`` installs those, ``installPage`` asks the
user for consent, ``sampleData`` offers a sample volume, and ``selfTest`` is the test inside the application.

In the lists below, a module imports only modules above it. The logic uses MRML alone, without Qt:

``geometry``             world and voxel coordinates, slice views, strokes and outlines as masks
``labelmaps``            a segmentation's segments as arrays on a volume's voxel grid
``sparseMask``           masks that are mostly empty
``segments``             the session's masks in the scene, together with other segments; detection of manual edits
``prompts``              markups that show the prompts
``sceneState``           a session's state, saved in the scene
``segmentationBinding``  all of the above, for one segmentation on one volume
``status``               status messages
``sessionController``    the queue of requests, the connection, and the upload of the image
``logic``                the interface to the widget

The panel:

``views``                mouse input in the views
``shortcuts``            keyboard shortcuts, active while the module is open
``editorHistory``        the Segment Editor's undo history, combined with the session's
``childProcess``         a program that runs beside Slicer
``localServer``          a server on this computer
``serverInstallation``   its installation, by the program ``installServer``
``installationForm``     the guide through the installation
``serverForm``           address, token, certificate, consent, and the connection test, which runs ``doctor``
``firstRun``             whether the user needs instructions on how to get a server
``widget``               the other controls, and the assembly of the panel
"""
