"""Nodes that multiply an activation by a stored weight, seen as one matrix product."""
