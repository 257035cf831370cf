"""Named experiments: one module a dataset or model family, one function an experiment."""
