"""Judging evidence: policy over authenticated claims, and what follows from it."""
