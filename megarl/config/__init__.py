"""Settings: one dataclass per part (schema), YAML and overrides (load), cross checks (validate)."""
