"""The warm server behind the launcher: the same plugins, without the start of an interpreter.

An option, never a need: when it is not there, or refuses, the launcher runs the plugin itself.
"""
