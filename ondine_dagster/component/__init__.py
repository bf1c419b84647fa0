"""The YAML component and its scaffolder."""
