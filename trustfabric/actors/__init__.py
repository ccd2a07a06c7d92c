"""Our processes: each owns one lifetime and decides with `domain`, stores with `db`."""
