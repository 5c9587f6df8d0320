"""Those who work against an attachment: a container's administrator, a tenant, a second caller.

`invariants` says once what must hold whatever they do. A bounded round of each is part of the test
suite; `make adversary` tries the long one, twenty times over, and says how much it tried.
"""
