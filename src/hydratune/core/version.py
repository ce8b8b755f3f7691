"""The version, apart from the public face: what needs it is imported by everything else."""

__version__ = "0.1.0"
