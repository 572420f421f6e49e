"""How the embedded model is made: ``python -m training.train --help``. Not part of the installed package."""
