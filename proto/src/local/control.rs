//! What the CLI asks of the agent: one JSON line each way.
