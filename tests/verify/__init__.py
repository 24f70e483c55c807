"""`make verify`: checks of a running deployment. Not part of `make test`, which tests these checks instead."""
