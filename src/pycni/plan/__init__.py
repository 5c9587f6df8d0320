"""Plans: what should exist for an attachment, as plain data. No I/O.

A plugin turns configuration and request into a plan; `pycni.steps.executor` makes, checks, repairs
and removes what it names.
"""
