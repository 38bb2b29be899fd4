"""Consultations with a simulated patient: cases, the talk, what is counted of it."""
