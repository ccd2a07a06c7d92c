"""Evidence: parsed, then authenticated, by pure functions that only ever Reject."""
