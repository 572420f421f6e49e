"""The client: a core without I/O, and drivers for asyncio, for blocking code, and for a polling timer."""
