"""An air-gapped, audit-first training appliance for regulated environments."""

__version__ = "0.1.0"
