"""Loads the fixtures; each subject has its plug-in."""

pytest_plugins = ["tests.fix_db"]
