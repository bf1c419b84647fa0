"""Run config of the Launchpad, and configuration from environment variables."""
