"""Image files, and prompts in files, read and written by the commands. The client does not need this package."""
