"""What the module is made of. Only ``widget`` needs Qt; everything else works on MRML alone.

A module imports only what stands above it: ``geometry``, ``labelmaps``, ``segments``, ``prompts``, ``sceneState``,
``logic``.
"""
