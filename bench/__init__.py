"""Quality, latency and measured network evaluations of few-step students: sweeps, a store, reports."""
