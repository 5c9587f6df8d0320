"""The protocol as data: versions, configuration, names, results, errors. No I/O.

Nothing here imports another room; every other room may import this one.
"""
