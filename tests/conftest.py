"""Loads the fixtures; each subject has its plug-in."""

pytest_plugins = [
    "tests.fix_db",
    "tests.fix_fabric",
    "tests.fix_hypothesis",
    "tests.fix_machines",
    "tests.fix_runtime",
    "tests.http.working",
]
