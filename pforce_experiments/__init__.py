"""Named experiments: one module per data set or model family, one function per experiment."""
