"""The commands of `python -m dalle`, a module each: what it reads from the command line, what it prints and writes.

Each has `add`, which adds its parser, and imports what is heavy only when it runs.
"""
