"""A differential fuzzer of operators and layers against NumPy, and mutators of frozen and NIR files.

``python -m tests.fuzz`` runs them; every case is a function of one integer, which its reproduction line names.
"""
