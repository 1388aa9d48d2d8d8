"""Rollouts: plan, waves, gates, the controller that moves them, and the documents that tell the devices."""
