"""The outside world; each file talks to one thing in it."""
