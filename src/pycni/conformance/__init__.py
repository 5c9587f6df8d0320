"""The specification as tests, for any plugin in any language: `pycni conformance`.

Each requirement that SPEC 1.1.0 makes of plugins, MUST or SHOULD, is a check: a function in
`checks`, declared with its id, section and sentence. A check runs in a process and in network and
mount namespaces of its own, with nothing in them but what it made, and speaks to the plugin as a
runtime does: environment, stdin, stdout, exit code. What it believes of the plugin's work it reads
from `ip`, `nft` and `tc`, never from pycni's own code.
"""
