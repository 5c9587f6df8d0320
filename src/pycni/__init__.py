"""CNI (Container Network Interface) in Python: protocol, plugins, runtime and SDK.

This module imports nothing: every plugin call passes through it.
"""

__version__ = "0.1.0"
