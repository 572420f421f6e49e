"""Training of the embedded model: ``python -m training.train --help``. Not part of the installed package."""
