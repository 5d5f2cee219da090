
import operator
def flattened_to(*a): raise NotImplementedError
def sized_as_traced(*a): raise NotImplementedError
def hooked(m): return ""
