"""Code that executors share: placement of tasks, Ray's start, the rendezvous of workers and driver, jobs and probes."""
