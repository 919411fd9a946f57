-- Graphs of blocks, for runtimes that cannot build blocks themselves.

CREATE TABLE block_graphs (
    dtype      text NOT NULL,
    operator   text NOT NULL,
    shape      text NOT NULL,
    exporter   text NOT NULL,
    graph      jsonb NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (dtype, operator, shape, exporter)
);
COMMENT ON TABLE block_graphs IS 'Exported blocks with their files; of several exporters'' the newest is measured.';
