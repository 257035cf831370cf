"""What executors share: how many tasks fit, Ray's start, where its workers meet their driver, jobs and probes."""
