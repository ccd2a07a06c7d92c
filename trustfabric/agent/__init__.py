"""The guest agent: small, and knows nothing of ours but evidence."""
