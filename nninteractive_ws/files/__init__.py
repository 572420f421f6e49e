"""Image files, and prompts as files: what the commands read and write. The client needs none of it."""
