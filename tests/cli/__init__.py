"""Tests of `gsm_lab.cli`."""
