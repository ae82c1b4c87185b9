"""Simulated pairs of CT and MR with known truth."""
