"""Four papers that carry probability between noise and face identity, on one small core."""

__version__ = "0.1.0"
