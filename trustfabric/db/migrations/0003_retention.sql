-- Where the streams begin since old rows were pruned: one row for each stream that ever was.

CREATE TABLE retention_horizons (
    stream     text PRIMARY KEY CHECK (stream IN ('trust', 'remediation')),
    xid        xid8 NOT NULL,
    row_id     bigint NOT NULL,
    known_from timestamptz NOT NULL,
    pruned_at  timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE retention_horizons IS
    '(xid, row_id) of the newest row that was pruned; from known_from on, nothing is missing';
