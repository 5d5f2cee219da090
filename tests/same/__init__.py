"""Compares what two versions of the library compute: operators, layers, networks, files and error messages.

``python -m tests.same --against REV`` (``make same AGAINST=REV``) runs the same cases with the library of a commit and
with that of the work tree, in a process each. Every output must be equal to the bit, and every error must have the same
message, but for the differences that differences.toml lists with a reason. The cases use the public API alone, so that
they run on both sides of a rebuild.
"""
