"""Image files, and prompts in files, read and written by the commands. Of these modules, only ``finite`` needs nothing
but the client's packages."""
