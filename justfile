# Recipes for contributors: https://just.systems. They use the environment in .venv.

export PATH := justfile_directory() / ".venv/bin" + ":" + env_var("PATH")

# List the recipes
default:
    @just --list

# Style, formatting and spelling
lint:
    ruff check .
    ruff format --check .
    codespell

# Types
types:
    mypy

# The README's test command
test *ARGS:
    pytest -n 2 --dist worksteal {{ARGS}}

# The branches that the README's test command covers
coverage:
    coverage erase
    coverage run -m pytest -n 2 --dist worksteal
    coverage combine --quiet
    coverage report

# The slow tests too
slow *ARGS:
    pytest -n 2 --dist worksteal --slow {{ARGS}}

# The documentation, into site/
docs:
    mkdocs build --strict

# The tests of the Slicer module
slicer *ARGS:
    pytest -n 2 --dist worksteal slicer_module/tests {{ARGS}}

# The repository of the Slicer extension, into a new or empty folder
slicer-extension FOLDER:
    python -m tools.slicer_extension {{quote(FOLDER)}}
