"""The commands of ``edge``, a family in a file: parse, call, print. No logic. ``cli.py`` names them all.

Every import but Typer's waits until its command runs, so that ``edge --help`` is quick.
"""
