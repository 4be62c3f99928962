"""How calls are checked against the shapes and dtypes in signatures, see conftest.py."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # a float may be an int
