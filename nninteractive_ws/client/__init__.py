"""The client: one core without I/O, and drivers for asyncio, for blocking code, and for a timer that polls."""
