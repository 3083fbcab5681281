"""Finds and outlines surface defects on rolled steel: trains, judges, exports and runs a two-stage inspector."""
