"""An air-gapped, audit-first training appliance for regulated environments."""
