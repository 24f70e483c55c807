"""A double of Heroku: its Platform API, builds, releases, dynos and router, on this machine.

It imitates what Heroku's documentation, its published API schema and its Python buildpack say; each file names its
source. `python -m tests.heroku` starts one by hand and prints how to use it.
"""
