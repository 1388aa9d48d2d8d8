"""The server: catalog, rollouts with gates, ingest, drift, retraining, and the dashboard."""
