"""The commands of `python -m dalle`, one module each: options, and what is printed and written.

Each module has a function `add` that adds its parser. Heavy imports (torch) are inside `_run`, so that --help is fast.
"""
