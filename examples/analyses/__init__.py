"""The analyses of analyse.py, by what they look at."""
